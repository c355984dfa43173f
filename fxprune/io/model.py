"""Models of the user's own class on disk: weights, how the class is built, and how the model differs from that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.errors import LoadError, OptionError, PlanError
from fxprune.files.document import Entry
from fxprune.graph.program import Program, named_tensors
from fxprune.io.build import Build, Make, read_build
from fxprune.io.constants import changed_constants, load_constants, save_constants
from fxprune.io.difference import KEYS, describe, left_out, make_like
from fxprune.io.directory import (
    CONSTANTS,
    INPUTS,
    MODEL,
    MODEL_FACTS,
    PLAN,
    REPORT,
    WEIGHTS,
    checked,
    read_json,
    write_json,
    written,
)
from fxprune.io.inputs import load_inputs, save_inputs
from fxprune.io.trust import Trust
from fxprune.io.weights import load_weights, save_weights
from fxprune.plan import Plan
from fxprune.report import Report
from fxprune.write_back.twin import twin_of

_KEYS = ("name", "build", *KEYS, "constants", "tensors", "inputs")


def save_model(
    model: nn.Module,
    directory: Path,
    build: Build,
    plan: Plan | None = None,
    report: Report | None = None,
    program: Program | None = None,
) -> None:
    """Writes a model of the user's class.

    Args:
        model: to save.
        directory: where to.
        build: makes the class at the size that it had before.
        plan: what was removed.
        report: of the pruning.
        program: whose example inputs are saved too.

    Raises:
        LoadError, OptionError: the directory cannot be written; or build makes another model, or none.
    """
    if plan is not None and (why := _misfit(plan, model)):
        raise OptionError(
            "the plan is of another model",
            where="plan",
            why=why,
            do="give the plan that was written back last, or leave it out",
        )
    call, fresh = build.to_json(), build()
    difference = _described(fresh, model, build)
    with written(directory, MODEL) as folder:
        facts = {
            "name": type(model).__name__,
            "build": call,
            **difference,
            "tensors": save_weights(model, folder / WEIGHTS, left_out(fresh, model)),
            "constants": [],
            "inputs": None,
        }
        if others := changed_constants(fresh, model):
            facts["constants"] = save_constants(others, folder / CONSTANTS)
        if program is not None:
            facts["inputs"] = save_inputs(program.args, program.kwargs, folder / INPUTS)
        write_json(folder / MODEL_FACTS, facts)
        if plan is not None:
            plan.save(folder / PLAN)
        if report is not None:
            write_json(folder / REPORT, report.to_json())


def _described(fresh: nn.Module, model: nn.Module, build: Build) -> dict[str, Any]:
    try:
        return describe(fresh, model)
    except OptionError as error:
        where = f"{error.where}; what was called is {build.spelled()}"
        raise OptionError(error.what, where=where, why=error.why, do=error.do) from error


def load_model(
    directory: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    build: Make | None = None,
    trust: Trust = (),
) -> nn.Module:
    """Loads a model of the user's own class that `fp.save` wrote: built, cut to its sizes, with its weights.

    To build a class is to run its code, and a file may name any. So the class is given here, or what the file names
    is allowed by its name. Nothing else of the directory runs code: see SECURITY.md. Parameters are on the CPU.

    Args:
        directory: that `fp.save` or `fxprune prune --class` wrote.
        model: a new model of the class, of its size before anything was removed; it stays as it is.
        build: the class or function, called with the saved arguments.
        trust: names of modules, "package.module", or of single callables, "package.module:callable", that may be
            imported and called where the directory names them; True for whatever it names.

    Returns:
        The model, in the mode (train or eval) in which it was saved.

    Raises:
        LoadError: a file is missing, truncated or altered; nothing allows to build the class; or what is built is
            not the model that was cut.
        OptionError: the arguments contradict each other.
    """
    if model is not None and (build is not None or trust):
        raise OptionError(
            "model leaves nothing to build", where="model", do="leave out build and trust, or model"
        )
    with checked(Path(directory), MODEL) as files:
        facts = _facts(files)
        tensors = load_weights(facts["tensors"], files[WEIGHTS])
        if PLAN in files:
            _check_plan(files[PLAN], tensors)
        row = facts["build"]
        fresh = _built(read_build(row, build, trust)) if model is None else _copy_of(model)
        make_like(fresh, facts, tensors)
        if facts["constants"].items():
            if CONSTANTS not in files:
                facts["constants"].fail(f"there is no {CONSTANTS}", "save it again")
            load_constants(fresh, facts["constants"], files[CONSTANTS])
        return fresh


def load_examples(directory: str | os.PathLike[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs, positional and by keyword, in the directory of a model.

    Raises:
        LoadError: it has none.
    """
    with checked(Path(directory), MODEL) as files:
        entry: Entry = _facts(files)["inputs"]
        if INPUTS not in files or entry.value is None:
            raise LoadError(
                f"{directory} has no example inputs",
                where=str(directory),
                do="give their shapes: --input 2x3x224x224",
            )
        return load_inputs(entry, files[INPUTS])


def saved_build(directory: str | os.PathLike[str], *, trust: Trust = ()) -> Build:
    """How the class of a saved model is built, as `save` takes it; see `load_model`.

    Raises:
        LoadError: as `load_model`.
    """
    with checked(Path(directory), MODEL) as files:
        return read_build(_facts(files)["build"], None, trust)


def _facts(files: Mapping[str, Path]) -> dict[str, Entry]:
    return read_json(files[MODEL_FACTS]).record(*_KEYS)


def _built(build: Build) -> nn.Module:
    try:
        return build()
    except OptionError as error:
        do = "pass model=..., a new model of the original size; or build=..., a function that takes the saved arguments"
        raise LoadError(error.what, where=error.where, why=error.why, do=do) from error


def _copy_of(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"model is a {type(model).__name__}, not an nn.Module",
            where="model",
            do="pass a new model; what builds one is passed as build=...",
        )
    try:
        return twin_of(model)
    except PlanError as error:
        raise OptionError(error.what, why=error.why, do="pass build=... instead") from error


def _check_plan(path: Path, tensors: nn.Module) -> None:
    """Makes sure that a plan is of the sizes that are saved."""
    try:
        plan = Plan.load(path)
    except PlanError as error:
        raise LoadError(error.what, where=error.where, why=error.why, do=error.do) from error
    if why := _misfit(plan, tensors):
        raise LoadError(
            f"{path.name} is for another model",
            where=str(path),
            why=why,
            do="save the model again, with the plan that it was written with",
        )


def _misfit(plan: Plan, model: nn.Module) -> str:
    """Why a model has not the sizes that a plan leaves; "" where it has."""
    found = named_tensors(model)
    for name, cut in plan.kept.items():
        for axis, positions in cut.items():
            shape = tuple(found[name].shape) if name in found else ()
            if axis >= len(shape) or shape[axis] != len(positions):
                there = f"has the shape {shape}" if shape else "is not there"
                return f"{len(positions)} positions of axis {axis} of {name[:80]} are kept, which {there}"
    return ""
