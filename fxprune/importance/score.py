"""Combines the saliencies of tensors into one score per unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes
from fxprune.analysis.group import Group
from fxprune.calibration import Calibration
from fxprune.calibration.calibration import Call, device_of
from fxprune.cost import Metric, cost_of
from fxprune.distributed import is_sharded
from fxprune.errors import OptionError, ScoreError
from fxprune.graph.program import Program
from fxprune.importance.table import (
    Criterion,
    Evidence,
    FloatArray,
    Needs,
    Normalise,
    find_criterion,
)

REDUCTIONS = ("mean", "sum", "max")


@dataclass(frozen=True)
class Importance:
    """How units are scored.

    Attributes:
        criterion: the name of a criterion, see `criterion_names()`.
        reduction: how the values of a unit in the axes it cuts are combined: mean, sum or max. None: the sum where
            scores are divided by the cost of the unit, which is that of all these axes, else the mean.
        normalise: how the scores of different groups are made comparable. group: those of each group are divided by
            their mean. cost: each is divided by what removing the unit saves, which suits scores that estimate a change
            of the loss. none: they are taken as they are. None: as is best for the criterion.
        data: for criteria that need inputs or a loss: batches, or an `fp.Calibration` that says how they go into the
            network and what their loss is.
        loss: instead of data, for criteria that need a loss: called with the module, returns a scalar loss or yields
            one per batch.
        batches: instead of data, for criteria that need inputs: tuples of positional inputs.

    Raises:
        OptionError: the reduction or the criterion does not exist; or there is data in more than one form.
    """

    criterion: str = "magnitude"
    reduction: Literal["mean", "sum", "max"] | None = None
    normalise: Normalise | None = None
    data: Calibration | Iterable[Any] | None = None
    loss: Callable[[torch.nn.Module], Any] | None = None
    batches: Iterable[tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        if self.reduction is not None and self.reduction not in REDUCTIONS:
            raise OptionError(
                f"there is no reduction {self.reduction!r}",
                do=f"choose one of {', '.join(REDUCTIONS)}",
            )
        if self.normalise is not None and self.normalise not in get_args(Normalise):
            raise OptionError(
                f"normalise is {self.normalise!r}",
                do=f"choose one of {', '.join(get_args(Normalise))}, or leave it out",
            )
        find_criterion(self.criterion)
        if self.data is not None and (self.loss is not None or self.batches is not None):
            raise OptionError(
                "importance has data in two forms",
                where="data, loss, batches",
                do="leave out loss and batches: fp.Calibration(batches, loss=...) has both",
            )

    @property
    def needs(self) -> Needs:
        """What the criterion reads: nothing, weights, inputs too, or a loss too."""
        return find_criterion(self.criterion).needs


def score_units(
    program: Program,
    axes: Axes,
    groups: list[Group],
    how: Importance,
    seed: int = 0,
    metric: Metric = "macs",
) -> FloatArray:
    """Returns one score per unit, `[n_units]`; a higher score means a more important unit.

    The score is NaN where the criterion does not apply to a unit.

    Args:
        program: what is scored.
        axes: its labels.
        groups: whose units are scored.
        how: by what.
        seed: of random numbers.
        metric: in which the cost of a unit is counted: params, or MACs where it is units. A choice by latency divides
            by time itself, see `fxprune.latency`, and costs are left out here.

    Raises:
        ScoreError: scores are not finite, weights are missing (meta device) or sharded, or data is missing.
    """
    if how.needs != "nothing" and any(map(is_sharded, program.module.parameters())):
        raise ScoreError(
            "the network is sharded",
            why="its scores would be those of the part that this process holds",
            do="score shrinker.whole_program(): the plan holds for the sharded program, too",
        )
    evidence = Evidence(program, axes, groups, _losses(how), _calls(how, program), seed)
    found = find_criterion(how.criterion)
    normalise = how.normalise or found.normalise
    reduction = how.reduction or ("sum" if normalise == "cost" else "mean")
    scores = found.of_units(evidence) if found.of_units else _of_tensors(evidence, found, reduction)
    bad = [g.name for g in groups if np.isinf(scores[g.units]).any()]
    if bad:
        raise ScoreError(
            "the importance scores are not finite",
            where=", ".join(bad[:5]),
            why="the weights or the data contain NaN or infinity",
            do="repair the weights, or exclude these modules with ignore=...",
        )
    if normalise == "group":
        for group in groups:
            scores[group.units] /= scores[group.units].mean() or 1.0
    elif normalise == "cost" and metric != "latency":
        _divide_by_cost(scores, program, axes, groups, metric)
    return scores


def _divide_by_cost(
    scores: FloatArray, program: Program, axes: Axes, groups: list[Group], metric: Metric
) -> None:
    """Divides scores by what the first unit of each group saves when it alone is removed."""
    cost = cost_of(program, axes, metric if metric == "params" else "macs")
    gone = np.zeros(axes.n_units, bool)
    whole = cost(gone)
    for group in groups:
        gone[group.units[0]] = True
        scores[group.units] /= max(whole - cost(gone), 1)
        gone[group.units[0]] = False


def _losses(how: Importance) -> Callable[[torch.nn.Module], Iterable[torch.Tensor]] | None:
    if how.data is not None:
        calibration = Calibration.of(how.data)
        return calibration.losses if calibration.has_loss else None
    if (loss := how.loss) is None:
        return None

    def losses(module: torch.nn.Module) -> Iterable[torch.Tensor]:
        found = loss(module)
        return [found] if isinstance(found, torch.Tensor) else found

    return losses


def _calls(how: Importance, program: Program) -> Callable[[], Iterable[Call]] | None:
    if how.data is not None:
        calibration = Calibration.of(how.data)
        return lambda: calibration.calls(device_of(program.module))
    if (batches := how.batches) is None:
        return None
    return lambda: ((tuple(args), dict(program.kwargs)) for args in batches)


def _of_tensors(evidence: Evidence, found: Criterion, reduction: str) -> FloatArray:
    out = np.zeros(evidence.axes.n_units)
    count = np.zeros(evidence.axes.n_units)
    parameters = dict(evidence.program.module.named_parameters(remove_duplicate=False))
    for name, labels in evidence.axes.params.items():
        if name not in parameters or not any(x.columns for x in labels):
            continue
        tensor = evidence.program.loaded(name, parameters[name].detach())
        saliency = _saliency(evidence, found, name, tensor)
        if saliency is None:
            continue
        for axis, label in enumerate(labels):
            if label.columns:
                others = [d for d in range(saliency.dim()) if d != axis]
                position = (saliency.sum(others) if others else saliency).double().numpy()
                for units, value in _by_unit(label.columns, position):
                    value = found.finish(value) if found.finish else value
                    _put(out, count, units, value, reduction)
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
            do='load the weights, or use importance="random"',
        )
    assert found.of_tensor is not None
    with torch.no_grad():
        saliency = found.of_tensor(evidence, name, _at_least_single(tensor))
    if saliency is not None and saliency.is_complex():
        raise ScoreError(
            f"the criterion {found.name!r} returns complex numbers",
            where=name,
            why="units are ordered by their scores, and complex numbers have no order",
            do="return real numbers, such as tensor.abs()",
        )
    return None if saliency is None else saliency.cpu()


def _at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.complex32:
        return tensor.to(torch.complex64)
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


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
