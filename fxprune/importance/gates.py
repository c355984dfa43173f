"""Criteria computed from the gradient by gates: what one factor on all that a unit puts out would change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fxprune.analysis.group import Group, Member
from fxprune.importance.gradient import change, no_loss, not_finite, require_gradients
from fxprune.importance.table import Evidence, FloatArray, unit_criterion

Tensor = torch.Tensor
DRAWS = 16  # of random directions, at least


@unit_criterion("fisher", needs="loss", normalise="cost")
def fisher(evidence: Evidence) -> FloatArray:
    """Empirical Fisher information of gates: the mean over the losses of (dL/dg)^2 for a gate g = 1 on a unit.

    Half of it approximates the increase of the loss when the unit is removed (Theis et al., arXiv 1801.05787, equation
    5). It is blind where the loss is almost 0 on all data, or is the distance from what the network puts out itself:
    `gauss-newton` is not. Needs a loss.
    """
    if evidence.losses is None:
        raise no_loss("fisher")
    require_gradients(evidence, "fisher")
    module = evidence.program.module
    with _requiring_gradients(module):
        return _mean_squares(evidence, evidence.losses(module), "fisher")


@unit_criterion("gauss-newton", needs="inputs", normalise="cost")
def gauss_newton(evidence: Evidence) -> FloatArray:
    """The diagonal of the Gauss-Newton matrix of gates: the mean of (v . dy/dg)^2 for random v and a gate g = 1.

    To first order, this is the mean squared change of the outputs when a unit is removed, each output tensor relative
    to its own variance in a batch. It equals the Fisher information of a network whose labels are its own outputs with
    Gaussian noise (Martens, arXiv 1412.1193, section 9), so that no labels are needed. Each batch has one random
    direction v; batches are read again until there are 16. Without data the program's example inputs are used.
    """
    require_gradients(evidence, "gauss-newton")
    module = evidence.program.module
    draw = torch.Generator().manual_seed(evidence.seed)

    def directions() -> Iterator[Tensor]:
        count = 0
        while count < DRAWS:
            for args, kwargs in evidence.inputs():
                count += 1
                yield _along_noise(module(*args, **kwargs), draw)

    with _requiring_gradients(module):
        return _mean_squares(evidence, directions(), "gauss-newton")


def _along_noise(outputs: Any, draw: torch.Generator) -> Tensor:
    """The sum over output tensors of v . y / (deviation of y * sqrt(elements)), `[]`, for normal v."""
    total = torch.zeros(())
    for y in pytree.tree_leaves(outputs):
        if isinstance(y, Tensor) and y.is_floating_point() and y.requires_grad:
            noise = torch.randn(y.shape, generator=draw).to(y)
            finite = torch.isfinite(y.detach())
            values = y.detach()[finite].float()  # infinity masks classes of some networks
            if y.detach().isnan().any():
                raise not_finite("an output", "gauss-newton")
            scale = values.std(correction=0) if values.numel() > 1 else values.abs().sum()
            if scale > 0:
                along = torch.where(finite, y, 0).mul(noise).sum(dtype=torch.float32)
                total = total + (along / (scale * values.numel() ** 0.5)).cpu()
    return total


def _mean_squares(evidence: Evidence, losses: Iterable[Tensor], criterion: str) -> FloatArray:
    """The mean over scalars of the square of their derivative by the gate of each unit, `[n_units]`.

    Raises:
        ScoreError: a scalar is not finite; the message names the criterion.
    """
    parameters = {n: p for n, p in evidence.program.module.named_parameters() if p.requires_grad}
    tensors = list(parameters.values())
    groups = [(g, _layers(g, parameters)) for g in evidence.groups]
    total, count = np.zeros(evidence.axes.n_units), 0
    for group, layers in groups:
        if not layers:
            total[group.units] = np.nan
    for loss in losses:
        count += 1
        if not torch.isfinite(loss).all():
            raise not_finite("the loss", criterion)
        if not loss.requires_grad:
            continue
        found = torch.autograd.grad(loss, tensors, allow_unused=True)
        changes = {
            n: change(p.detach(), g)
            for (n, p), g in zip(parameters.items(), found, strict=True)
            if g is not None
        }
        sums: dict[tuple[str, int], FloatArray] = {}
        for group, layers in groups:
            total[group.units] += _squares(group, layers, changes, sums)
    return total / max(count, 1)


def _layers(group: Group, parameters: Mapping[str, Tensor]) -> list[list[Member]]:
    """The members whose weights say what a gate does: all that read the units, as one; or else each that makes them.

    The product of several layers, such as queries and keys, has one gate.
    """
    for role in ("consumer", "producer", "elementwise"):
        found = [m for m in group.members if m.role == role and m.param in parameters]
        if found and role == "consumer":
            return [found]
        if found:
            found.sort(key=_module)
            return [list(members) for _, members in groupby(found, _module)]
    return []


def _module(member: Member) -> str:
    return member.param.rpartition(".")[0]


def _squares(
    group: Group,
    layers: Sequence[Sequence[Member]],
    changes: Mapping[str, Tensor],
    sums: dict[tuple[str, int], FloatArray],
) -> FloatArray:
    """The squared derivatives by the gates of a group, `[units]`; of several layers, the largest."""
    best = np.zeros(len(group))
    first = group.units[0]
    where = np.zeros(int(group.units[-1] - first) + 1, np.int64)
    where[group.units - first] = np.arange(len(group))
    for members in layers:
        slope = np.zeros(len(group))
        for m in members:
            if m.param in changes:
                along = _along_axis(m, changes, sums)
                slope += np.bincount(where[m.units - first], along[m.positions], len(group))
        best = np.maximum(best, slope**2)
    return best


def _along_axis(
    member: Member, changes: Mapping[str, Tensor], sums: dict[tuple[str, int], FloatArray]
) -> FloatArray:
    """The change of a parameter, summed over all axes but one."""
    key = (member.param, member.axis)
    if key not in sums:
        tensor = changes[member.param]
        others = [d for d in range(tensor.dim()) if d != member.axis]
        found = tensor.sum(others, dtype=torch.float64) if others else tensor.double()
        sums[key] = found.cpu().numpy()
    return sums[key]


@contextmanager
def _requiring_gradients(module: torch.nn.Module) -> Iterator[None]:
    """Within it, frozen parameters have gradients too."""
    frozen = [
        p
        for p in module.parameters()
        if not p.requires_grad and (p.is_floating_point() or p.is_complex())
    ]
    for p in frozen:
        p.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
