"""Saves programs and pruning outcomes, and loads them without the class of the model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from fxprune.errors import LoadError
from fxprune.graph.program import Program, build_module
from fxprune.io.directory import PROGRAM, check_directory, write_json, written
from fxprune.io.graph import load_graph, restore, save_graph
from fxprune.io.leaves import put_back, take_out
from fxprune.io.parts import PLAN, REPORT, WEIGHTS, save_parts
from fxprune.io.weights import load_weights, save_weights
from fxprune.plan import Plan
from fxprune.remark import Remark
from fxprune.report import Report

GRAPH, FACTS, LEAVES = "program.pt2", "program.json", "leaves.safetensors"


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


def save(what: Program | Saveable, directory: str | os.PathLike[str]) -> None:
    """Writes a program, or the outcome of a pruning run, to a directory.

    The directory contains `program.pt2` (the graph in torch's own format, without weights),
    `weights.safetensors`, `program.json` (names, modules, modes, gates and observers),
    `leaves.safetensors` (the tensors of gates and observers), for an outcome also `plan.json` and
    `report.json`, and `manifest.json` with the SHA-256 of each file. The directory appears complete or not
    at all; an older one that fxprune wrote is replaced. Weights on any device are loaded on the CPU.

    The outcome of pruning a partial capture has no graph of the whole model. Its directory contains the
    smaller model's weights, the plan and the report; `Partial.load` reads it.

    Raises:
        LoadError: the directory exists and fxprune did not write it, or the program is on the meta device.
    """
    if isinstance(what, Program):
        _save(what, Path(directory))
    elif what.model is not None:
        _check_weights(type(what.model).__name__, what.model)
        save_parts(what.model, what.plan, what.report, Path(directory))
    else:
        _save(what.program, Path(directory), what)


def _check_weights(name: str, module: torch.nn.Module) -> None:
    if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        raise LoadError(
            "a program on the meta device has no weights to save",
            where=name,
            do="save its plan (plan.save) and apply it to a model with weights",
        )


def _save(program: Program, directory: Path, outcome: Saveable | None = None) -> None:
    _check_weights(program.name, program.module)
    plain, leaves, tensors = take_out(program)
    with written(directory, PROGRAM) as folder:
        facts = {
            "name": program.name,
            "training": program.training,
            "free_batch": program.free_batch,
            "remarks": [r.to_json() for r in program.remarks],
            "graph": save_graph(plain, folder / GRAPH),
            "tensors": save_weights(plain.module, folder / WEIGHTS),
            "leaves": leaves,
        }
        save_file({k: t.cpu().contiguous() for k, t in tensors.items()}, folder / LEAVES)
        write_json(folder / FACTS, facts)
        if outcome is not None:
            outcome.plan.save(folder / PLAN)
            write_json(folder / REPORT, outcome.report.to_json())


def load(directory: str | os.PathLike[str]) -> Program:
    """Loads a program from a saved directory: trainable, with its batch size free as before, on the CPU.

    Raises:
        LoadError: a file is missing, truncated, altered, or of another version.
    """
    folder = Path(directory)
    check_directory(folder, PROGRAM)
    facts = _facts(folder / FACTS)
    loaded = load_graph(folder / GRAPH)
    tree = load_weights(facts["tensors"], folder / WEIGHTS)
    _keep_objects(loaded, tree)
    graph = restore(loaded.graph, facts["graph"])
    plain = Program(
        build_module(tree, graph, training=facts["training"]),
        loaded.args,
        loaded.kwargs,
        free_batch=facts["free_batch"],
        name=facts["name"],
        remarks=tuple(Remark(**r) for r in facts["remarks"]),
    )
    return put_back(plain, facts["leaves"], load_file(folder / LEAVES))


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def _keep_objects(loaded: Program, tree: Any) -> None:
    """Adds to the tree what the graph refers to besides weights: graphs of branches, and constants."""
    known = {n for n, _ in tree.named_parameters(remove_duplicate=False)}
    known |= {n for n, _ in tree.named_buffers(remove_duplicate=False)}
    for node in loaded.graph.find_nodes(op="get_attr"):
        path, _, leaf = str(node.target).rpartition(".")
        if node.target not in known and not path:
            setattr(tree, leaf, getattr(loaded.module, leaf))
