"""Saves the result of pruning a partial capture: the tensors of the smaller model, without a graph.

Since the whole model has no graph, its class is needed to load it. Its parts are captured again, the
plan is applied to them, and the saved tensors are copied in (`Partial.load`).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from fxprune.errors import LoadError
from fxprune.io.directory import (
    PARTS,
    PARTS_FACTS,
    PLAN,
    REPORT,
    WEIGHTS,
    checked,
    read_json,
    write_json,
    written,
)
from fxprune.io.weights import load_weights, save_weights
from fxprune.plan import Plan
from fxprune.report import Report


def save_parts(model: nn.Module, plan: Plan, report: Report, directory: Path) -> None:
    """Writes the tensors of a model whose parts were pruned, with the plan and the report.

    Raises:
        LoadError: the directory exists, and fxprune did not write it.
    """
    with written(directory, PARTS) as folder:
        tensors = save_weights(model, folder / WEIGHTS)
        write_json(folder / PARTS_FACTS, {"name": type(model).__name__, "tensors": tensors})
        plan.save(folder / PLAN)
        write_json(folder / REPORT, report.to_json())


def load_parts(directory: str | os.PathLike[str]) -> tuple[Plan, dict[str, torch.Tensor]]:
    """Reads the plan and the tensors of the smaller model from a saved directory.

    Raises:
        LoadError: a file is missing, truncated or altered, or the directory contains something else.
    """
    with checked(Path(directory), PARTS) as files:
        facts = read_json(files[PARTS_FACTS]).record("name", "tensors")
        plan = Plan.load(files[PLAN])
        return plan, load_weights(facts["tensors"], files[WEIGHTS]).state_dict()


def put_state(model: nn.Module, state: dict[str, torch.Tensor], directory: object) -> None:
    """Copies saved tensors into a model with the same names and sizes.

    Raises:
        LoadError: the model is not the one that was saved.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise LoadError(
            f"the tensors of {directory} do not fit {type(model).__name__}",
            where=str(directory),
            why=" ".join(str(error).split())[:240],
            do="capture the model that was pruned, with the same options",
        ) from error
