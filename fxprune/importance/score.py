"""From saliencies of tensors to one score per unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes
from fxprune.analysis.group import Group
from fxprune.errors import OptionError, ScoreError
from fxprune.graph.program import Program
from fxprune.importance.table import Criterion, Evidence, FloatArray, find_criterion

REDUCTIONS = ("mean", "sum", "max")


@dataclass(frozen=True)
class Importance:
    """How to score units.

    Attributes:
        criterion: name of a criterion, see `criterion_names()`.
        reduction: how the members of a group are put together: mean, sum or max.
        normalise: divide the scores of each group by their mean, so that groups compare.
        loss: for criteria with gradients: called with the module; returns a loss or yields one per batch.
        batches: for criteria with activations: input tuples.
    """

    criterion: str = "magnitude"
    reduction: Literal["mean", "sum", "max"] = "mean"
    normalise: bool = True
    loss: Callable[[torch.nn.Module], Any] | None = None
    batches: Iterable[tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise OptionError(
                f"no reduction is called {self.reduction!r}", do=f"known: {', '.join(REDUCTIONS)}"
            )
        find_criterion(self.criterion)


def score_units(
    program: Program, axes: Axes, groups: list[Group], how: Importance, seed: int = 0
) -> FloatArray:
    """One score per unit `[n_units]`; higher means keep, NaN that the criterion says nothing of it.

    Raises:
        ScoreError: scores that are not finite, weights that are not there (meta device), or data that is missing.
    """
    evidence = Evidence(program, axes, groups, how.loss, how.batches, seed)
    found = find_criterion(how.criterion)
    scores = (
        found.of_units(evidence) if found.of_units else _of_tensors(evidence, found, how.reduction)
    )
    bad = [g.name for g in groups if np.isinf(scores[g.units]).any()]
    if bad:
        raise ScoreError(
            "importance is not finite",
            where=", ".join(bad[:5]),
            why="weights or data hold NaN or infinity",
            do="repair the weights, or ignore these modules",
        )
    if how.normalise:
        for group in groups:
            scores[group.units] /= scores[group.units].mean() or 1.0
    return scores


def _of_tensors(evidence: Evidence, found: Criterion, reduction: str) -> FloatArray:
    out = np.zeros(evidence.axes.n_units)
    count = np.zeros(evidence.axes.n_units)
    parameters = dict(evidence.program.module.named_parameters(remove_duplicate=False))
    for name, labels in evidence.axes.params.items():
        if name not in parameters or not any(x.columns for x in labels):
            continue
        saliency = _saliency(evidence, found, name, parameters[name].detach())
        if saliency is None:
            continue
        for axis, label in enumerate(labels):
            if label.columns:
                others = [d for d in range(saliency.dim()) if d != axis]
                position = (saliency.sum(others) if others else saliency).double().numpy()
                for units, value in _by_unit(label.columns, position):
                    value = found.finish(value) if found.finish else value
                    _put(out, count, units, value, reduction)
    if not count.any():
        raise ScoreError(
            f"the criterion {found.name!r} finds nothing to score in this network",
            do="choose another",
        )
    out = np.where(np.isnan(out), np.inf, out)
    out = out / np.maximum(count, 1) if reduction == "mean" else out
    return np.where(count == 0, np.nan, out)


def _saliency(
    evidence: Evidence, found: Criterion, name: str, tensor: torch.Tensor
) -> torch.Tensor | None:
    if tensor.is_meta:
        raise ScoreError(
            f"the criterion {found.name!r} needs weights",
            where=name,
            why="the tensor is on the meta device",
            do='use importance="random" or metric="units" with "random"',
        )
    assert found.of_tensor is not None
    with torch.no_grad():
        saliency = found.of_tensor(
            evidence, name, tensor.float() if tensor.dtype.itemsize < 4 else tensor
        )
    return None if saliency is None else saliency.cpu()


def _by_unit(
    columns: tuple[IntArray, ...], position: FloatArray
) -> Iterable[tuple[IntArray, FloatArray]]:
    for column in columns:
        units, index = np.unique(column, return_inverse=True)
        yield units, np.bincount(index, position).astype(np.float64)


def _put(
    out: FloatArray, count: FloatArray, units: IntArray, value: FloatArray, reduction: str
) -> None:
    count[units] += 1
    if reduction == "max":
        out[units] = np.maximum(out[units], value)
    else:
        out[units] += value
