"""Saves programs, pruning outcomes and models; loads programs without the class of the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from fxprune.distributed import is_sharded
from fxprune.errors import LoadError, OptionError
from fxprune.files.document import Entry
from fxprune.graph.program import Program, TracedModule, build_module
from fxprune.io.build import Make, find_build
from fxprune.io.directory import (
    FACTS,
    GRAPH,
    INPUTS,
    PLAN,
    PROGRAM,
    REPORT,
    WEIGHTS,
    checked,
    read_json,
    write_json,
    written,
)
from fxprune.io.graph import read_graph, write_graph
from fxprune.io.inputs import load_inputs, save_inputs
from fxprune.io.leaves import put_leaves, write_leaves
from fxprune.io.model import save_model
from fxprune.io.parts import save_parts
from fxprune.io.weights import load_weights, save_weights
from fxprune.plan import Plan
from fxprune.remark import read_remark
from fxprune.report import Report


@runtime_checkable
class Saveable(Protocol):
    """A program with its plan and report, as `fp.prune` returns it."""

    @property
    def program(self) -> Program: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def report(self) -> Report: ...
    @property
    def model(self) -> torch.nn.Module | None: ...


def save(
    what: Program | Saveable | torch.nn.Module,
    directory: str | os.PathLike[str],
    *,
    build: Make | str | None = None,
    args: Sequence[Any] | Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    report: Report | None = None,
) -> None:
    """Writes a program, the outcome of a pruning run, or a model of your own class to a directory.

    The directory holds `graph.json` (the nodes, and what is known of their values),
    `weights.safetensors`, `inputs.safetensors` (the example inputs), `program.json` (names of tensors,
    gates and observers, remarks), of an outcome `plan.json` and `report.json`, and `manifest.json` with
    the SHA-256 of each. It appears complete or not at all; an older one of fxprune is replaced, and other
    files in it stay. Weights are loaded on the CPU, wherever they were.

    The outcome of pruning a partial capture has no graph of the whole model. Its directory contains the
    smaller model's weights, the plan and the report; `Partial.load` reads it.

    A model of your own class, which `fp.write_back` returned, and the outcome of pruning with `fits=model` have no
    graph in their directory. It says how the class is built at its original size and how the model differs from
    that: sizes, numbers in its modules and its config, modules that are gone. `fp.load_model` reads it.

    Args:
        what: to save.
        directory: absent, empty, or one that fxprune wrote.
        build: of a model: the class or function that makes it as it was before anything was removed, or its
            import path, `"package.module:callable"`. By default the class of the model, with the model's config
            where it has one, else without arguments.
        args: of a model: arguments for `build`: a dict of keywords, or a list. Plain values and configs.
        plan: of a model: the plan that was written back, to be saved with it; an outcome has its own.
        report: of a program or a model: the report of its pruning, to be saved with it and with its plan, as of a
            network that has recovered: `report=outcome.report.with_curves(recovered)`; an outcome has its own.

    Raises:
        LoadError: the directory exists and fxprune did not write it, or the program is on the meta device
            or sharded.
        OptionError: nothing says how the class is built, `build` makes another model, or a report has no plan.
    """
    plan = _plan_of(what, plan, report)
    own = what if isinstance(what, torch.nn.Module) else getattr(what, "written", None)
    if own is not None and not isinstance(own, torch.fx.GraphModule):
        found: Any = what
        pruned = (plan, report) if own is what else (found.plan, found.report, found.program)
        _check_weights(type(own).__name__, own)
        save_model(own, Path(directory), find_build(own, build, args), *pruned)
        return
    if isinstance(what, torch.nn.Module) or not isinstance(what, Program | Saveable):
        raise OptionError(
            f"a {type(what).__name__} cannot be saved",
            why="fp.save takes a program, the outcome of fp.prune, or a model of your own class",
            do="program = fp.capture(model, args), or torch.save the model's state_dict",
        )
    if build is not None or args is not None or (plan is not None and report is None):
        raise OptionError(
            "a graph is not built",
            where="build, args and plan",
            do="leave them out; or save a model: fp.save(fp.write_back(model, plan), directory, build=...)",
        )
    if isinstance(what, Program):
        _save(what, Path(directory), plan, report)
    elif what.model is not None:
        _check_weights(type(what.model).__name__, what.model)
        save_parts(what.model, what.plan, what.report, Path(directory))
    else:
        _save(what.program, Path(directory), what.plan, what.report)


def _plan_of(what: object, plan: Plan | None, report: Report | None) -> Plan | None:
    """The plan that is saved with a report, or the one that was given."""
    if report is None:
        return plan
    if not isinstance(what, Program | torch.nn.Module):
        raise OptionError(
            f"a {type(what).__name__} has a report of its own",
            where="report",
            do="save its program with this report: fp.save(outcome.program, directory, report=...)",
        )
    found = plan or report.plan
    if found is None:
        raise OptionError(
            "the report does not know its plan",
            where="report",
            why="reports that come from to_json have none",
            do="give it too: plan=outcome.plan; or read both with fp.load_report(directory)",
        )
    return found


def _check_weights(name: str, module: torch.nn.Module) -> None:
    if any(map(is_sharded, module.parameters())):
        raise LoadError(
            "each process holds only a part of a sharded network",
            where=name,
            do="save shrinker.whole_program(), or write a checkpoint with torch.distributed.checkpoint",
        )
    if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        raise LoadError(
            "a program on the meta device has no weights to save",
            where=name,
            do="save its plan (plan.save) and apply it to a model with weights",
        )


def _save(
    program: Program, directory: Path, plan: Plan | None = None, report: Report | None = None
) -> None:
    _check_weights(program.name, program.module)
    graph, leaves = write_graph(program), write_leaves(program.module)
    with written(directory, PROGRAM) as folder:
        facts = {
            "name": program.name,
            "training": program.training,
            "free_batch": program.free_batch,
            "remarks": [r.to_json() for r in program.remarks],
            "inputs": save_inputs(program.args, program.kwargs, folder / INPUTS),
            "tensors": save_weights(program.module, folder / WEIGHTS),
            "leaves": leaves,
        }
        write_json(folder / GRAPH, graph)
        write_json(folder / FACTS, facts)
        if plan is not None and report is not None:
            plan.save(folder / PLAN)
            write_json(folder / REPORT, report.to_json())


def load(directory: str | os.PathLike[str]) -> Program:
    """Loads a program from a saved directory: trainable, with its batch size free as before, on the CPU.

    No code of the directory is run, whoever wrote it: see SECURITY.md.

    Raises:
        LoadError: a file is missing, truncated, altered, or of another version; or it names an operator or a
            class whose package was not imported.
    """
    with checked(Path(directory), PROGRAM) as files:
        facts = read_json(files[FACTS]).record(
            "name", "training", "free_batch", "remarks", "inputs", "tensors", "leaves"
        )
        tree = load_weights(facts["tensors"], files[WEIGHTS])
        put_leaves(tree, facts["leaves"])
        top = read_json(files[GRAPH])
        args, kwargs = load_inputs(facts["inputs"], files[INPUTS])
        return Program(
            _module(top, tree, training=facts["training"].flag()),
            args,
            kwargs,
            free_batch=facts["free_batch"].flag(),
            name=facts["name"].text(),
            remarks=tuple(map(read_remark, facts["remarks"].items())),
        )


def _module(entry: Entry, tree: torch.nn.Module, *, training: bool) -> TracedModule:
    graph = read_graph(entry, tree)
    try:
        graph.lint()
        return build_module(tree, graph, training=training)
    except Exception as error:  # torch.fx says in its own ways that a graph makes no sense
        entry.fail(f"is no graph: {type(error).__name__}: {error}"[:240], "save it again")
