"""The silenced original: full-size weights, removed positions silenced wherever an operator sums over them.

Shares the labels with the rewrite but none of its slicing, so the two can be held against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.algebra.label import Label
from fxprune.analysis.axes import Axes
from fxprune.errors import VerifyError
from fxprune.graph.evaluate import Evaluator, Provide, in_single
from fxprune.graph.operands import bind
from fxprune.graph.program import Program

Tensor = torch.Tensor


class Silenced(Evaluator):
    """Runs a program at full size as if the removed units were not there.

    Before a contraction or a sum, removed positions are zero; a norm's statistics leave them out.
    """

    def __init__(
        self,
        program: Program,
        axes: Axes,
        removed: Any,
        dtype: torch.dtype,
        provide: Provide | None = None,
    ) -> None:
        super().__init__(program, dtype, provide)
        self._axes = axes
        self._gone = np.zeros(axes.n_units, bool)
        self._gone[removed] = True
        self._keep: dict[int, Tensor | None] = {}

    def touches(self, node: fx.Node) -> bool:
        """Whether a node computes something else than it does at full size."""
        marks = self._axes.marks.get(node)
        if marks is None or node.op != "call_function":
            return False
        return any(self.keep(x) is not None for x in (*marks.statistics, *marks.silenced))

    def compute(self, node: fx.Node) -> Any:
        """One node, its inputs silenced first where the rules said so."""
        if not self.touches(node):
            return super().compute(node)
        marks = self._axes.marks[node]
        if any(self.keep(x) is not None for x in marks.statistics):
            return self._normalise(node, marks.statistics)
        wanted = {id(x) for x in marks.silenced}

        def load(source: fx.Node) -> Any:
            return self._silence(self.env[source], self._axes.nodes.get(source), wanted)

        args, kwargs = fx.map_arg(node.args, load), fx.map_arg(node.kwargs, load)
        return self.call_function(node.target, args, kwargs)

    def keep(self, label: Label) -> Tensor | None:
        """Which positions stay, or None where all do."""
        if id(label) not in self._keep:
            lost = self._axes.removed(label, self._gone)
            self._keep[id(label)] = torch.from_numpy(~lost) if lost.any() else None
        return self._keep[id(label)]

    def _silence(self, value: Any, labels: Any, wanted: set[int]) -> Any:
        if isinstance(value, list | tuple) and isinstance(labels, list):
            return [self._silence(v, x, wanted) for v, x in zip(value, labels, strict=True)]
        if not isinstance(value, Tensor) or labels is None:
            return value
        for axis, label in enumerate(labels):
            keep = self.keep(label) if id(label) in wanted else None
            if keep is not None:
                mask = ~_over(_resize(keep, value.shape[axis]), axis, value.dim())
                value = value.masked_fill(mask.to(value.device), 0)
        return value

    def _normalise(self, n: fx.Node, statistics: Sequence[Label]) -> Any:
        positional, keywords = bind(n)
        values = fx.map_arg((positional, keywords), lambda node: self.env[node])
        labels = self._axes.nodes[n.args[0]]
        wanted = {id(x) for x in statistics}
        x = values[0][0]
        mask = torch.ones((), dtype=torch.bool)
        for axis, label in enumerate(labels):
            keep = self.keep(label) if id(label) in wanted else None
            if keep is not None:
                mask = mask & _over(_resize(keep, x.shape[axis]), axis, x.dim())
        name = n.target._schema.name  # type: ignore[union-attr]
        if name == "aten::group_norm":
            keep = self.keep(labels[1])
            mask = _over(keep, 1, x.dim()) if keep is not None else mask
        args, kwargs = pytree.tree_map_only(Tensor, _at_least_single, values)
        out = NORMS[name](mask.to(x.device).expand(x.shape), *args, **kwargs)
        return pytree.tree_map_only(
            Tensor, lambda y: y.to(x.dtype) if y.is_floating_point() else y, out
        )


def _at_least_single(x: Tensor) -> Tensor:
    """A tensor in which sums of many squares do not overflow; norms compute in such a type too."""
    return x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x


def _over(keep: Tensor, axis: int, rank: int) -> Tensor:
    return keep.view([-1 if i == axis else 1 for i in range(rank)])


def _resize(keep: Tensor, length: int) -> Tensor:
    """A mask over an axis that holds the batch, for the batch of this run instead of the analysis's."""
    if len(keep) == length:
        return keep
    ratio = Fraction(len(keep), length)
    known, batch = ratio.numerator, ratio.denominator
    rest = len(keep) // known
    for outer in (n for n in range(1, rest + 1) if rest % n == 0):
        grid = keep.view(outer, known, rest // outer)
        if bool((grid == grid[:, :1]).all()):
            return grid[:, :1].expand(-1, batch, -1).reshape(-1)
    raise VerifyError(
        f"an axis of {length} positions cannot be silenced by a mask made for {len(keep)}",
        why="its length depends on the batch in a way that is not a product",
        do="capture with dynamic_batch=False",
    )


def _moments(x: Tensor, mask: Tensor, dims: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared deviations and count over the masked positions, dims kept."""
    count = mask.sum(dims, keepdim=True).to(x.dtype)
    seen = torch.where(mask, x, 0)
    mean = seen.sum(dims, keepdim=True) / count.clamp(min=1)
    deviation = torch.where(mask, x - mean, 0).square().sum(dims, keepdim=True)
    return mean, deviation, count


def _standardised(x: Tensor, mask: Tensor, dims: list[int], eps: float) -> Tensor:
    """The input less its mean over the masked positions, over their standard deviation."""
    mean, deviation, count = _moments(x, mask, dims)
    return (x - mean) / torch.sqrt(deviation / count.clamp(min=1) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _affine_by_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return _affine(x, *(None if v is None else _over(v, 1, x.dim()) for v in (weight, bias)))


def _layer_norm(
    mask: Tensor,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
    **__: Any,
) -> Tensor:
    return _affine(_standardised(x, mask, list(range(-len(shape), 0)), eps), weight, bias)


def _native_layer_norm(mask: Tensor, x: Tensor, shape: Sequence[int], *args: Any) -> list[Tensor]:
    mean, deviation, count = _moments(x, mask, list(range(-len(shape), 0)))
    return [_layer_norm(mask, x, shape, *args), mean, torch.rsqrt(deviation / count + args[2])]


def _rms_norm(
    mask: Tensor,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    dims = list(range(-len(shape), 0))
    count = mask.sum(dims, keepdim=True)
    square = torch.where(mask, x, 0).square().sum(dims, keepdim=True) / count.clamp(min=1)
    out = x * torch.rsqrt(square + (torch.finfo(x.dtype).eps if eps is None else eps))
    return _affine(out, weight, None)


def _group_norm(
    mask: Tensor,
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    shape = (x.shape[0], groups, -1)
    out = _standardised(x.reshape(shape), mask.reshape(shape), [2], eps).reshape(x.shape)
    return _affine_by_channel(out, weight, bias)


def _batch_norm(
    mask: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    _mean: Any,
    _var: Any,
    _training: bool,
    _momentum: float,
    eps: float,
    *_: Any,
) -> Tensor:
    dims = [i for i in range(x.dim()) if i != 1]
    return _affine_by_channel(_standardised(x, mask, dims, eps), weight, bias)


def _variance(
    mask: Tensor, x: Tensor, *args: Any, correction: Any = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Variance and mean, for all overloads: (unbiased), (dim, unbiased, keepdim), (dim) and keywords."""
    if args and isinstance(args[0], bool):
        args = (None, *args)
    dim, unbiased, keep = (*args, None, None, None)[:3]
    dims = (
        list(range(x.dim()))
        if dim is None or dim == []
        else [dim]
        if isinstance(dim, int)
        else list(dim)
    )
    fix = (1 if correction is None else correction) if unbiased is None else int(unbiased)
    mean, deviation, count = _moments(x, mask, dims)
    out = deviation / (count - fix).clamp(min=0), mean
    return out if keepdim or keep else (out[0].squeeze(dims), out[1].squeeze(dims))


def _std(mask: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _variance(mask, x, *args, **kwargs)[0].sqrt()


def _var(mask: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _variance(mask, x, *args, **kwargs)[0]


def _std_mean(mask: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
    variance, mean = _variance(mask, x, *args, **kwargs)
    return [variance.sqrt(), mean]


def _fake_quantised(op: Any) -> Callable[..., Any]:
    """Fake quantisation by the range of the masked positions, which the others are filled from."""

    def run(mask: Tensor, x: Tensor, *args: Any) -> Any:
        per_row = args[10]  # torch supports it for axis 0 only
        rows, seen = ((v if per_row else v[None]).flatten(1) for v in (x, mask))
        first = rows.gather(1, seen.to(torch.uint8).argmax(1, keepdim=True))
        shape = [-1] + [1] * (x.dim() - 1)
        return in_single(op, (torch.where(mask, x, first.view(shape)), *args), {})

    return run


NORMS: dict[str, Callable[..., Any]] = {
    "aten::batch_norm": _batch_norm,
    "aten::layer_norm": _layer_norm,
    "aten::native_layer_norm": _native_layer_norm,
    "aten::rms_norm": _rms_norm,
    "aten::group_norm": _group_norm,
    "aten::var": _var,
    "aten::std": _std,
    "aten::var_mean": lambda *a, **k: list(_variance(*a, **k)),
    "aten::std_mean": _std_mean,
    **{
        op._schema.name: _fake_quantised(op)
        for op in (
            torch.ops.aten._fused_moving_avg_obs_fq_helper.default,
            torch.ops.aten._fused_moving_avg_obs_fq_helper_functional.default,
        )
    },
}
