"""Finds the units of each value that hold the same number for every input of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import fx

from fxprune.graph.gate import Gate
from fxprune.graph.leaf import leaf_of
from fxprune.graph.operands import get_argument, is_operator
from fxprune.graph.program import Program
from fxprune.structure.paths import operator
from fxprune_passes.rewrite.layers.affine_layer import Layer, channel_axis, read_layer
from fxprune_passes.rewrite.layers.channel_sums import by_input, sum_inputs
from fxprune_passes.rewrite.moves.moving_operators import POOLS

Tensor = torch.Tensor

_SAME = frozenset(
    "alias clone contiguous detach dropout feature_dropout alpha_dropout feature_alpha_dropout".split()
)
_VIEWS = frozenset(("flatten", "view", "reshape", "_unsafe_view"))


@dataclass(frozen=True)
class Constant:
    """The constant units along an axis of a value.

    Attributes:
        axis: the axis of the units.
        values: `[size]` in float64, the number of each unit; NaN for a unit that varies.
    """

    axis: int
    values: Tensor

    @property
    def any(self) -> bool:
        """Whether at least one unit is constant."""
        return not bool(self.values.isnan().all())


Known = Mapping[fx.Node, Constant]


def constant_units(program: Program, seeds: Known | None = None) -> dict[fx.Node, Constant]:
    """The values of a program in eval mode that have constant units.

    Constants originate in rows of zeros of a weight and in factors of 0 of a batch norm.

    Args:
        program: a captured network.
        seeds: constant units of some values that are known beforehand.
    """
    walk = _Walk(program)
    for node in program.nodes:
        found = _visit(walk, node)
        if seeds and node in seeds:
            found = _both(found, seeds[node])
        if found is not None and found.any:
            walk.known[node] = found
    return walk.known


class _Walk:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.tensors = program.tensors()
        self.known: dict[fx.Node, Constant] = {}

    def tensor(self, node: Any) -> Tensor | None:
        """A parameter or buffer in float64; None for a value that is computed."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        found = self.tensors.get(str(node.target))
        return None if found is None else found.detach().double()

    def of(self, node: Any) -> Constant | None:
        return self.known.get(node) if isinstance(node, fx.Node) else None


def _both(a: Constant | None, b: Constant) -> Constant:
    """The units that are constant according to either of the two."""
    if a is None or a.axis != b.axis:
        return b
    return Constant(a.axis, torch.where(a.values.isnan(), b.values, a.values))


def _visit(walk: _Walk, node: fx.Node) -> Constant | None:
    name = operator(node)
    if node.op == "call_module":
        return _leaf(walk, node)
    if (layer := read_layer(node)) is not None:
        return _layer(walk, layer)
    if name in _RULES:
        return _RULES[name](walk, node)
    first = walk.of(node.args[0]) if node.args else None
    return None if first is None else _handed_on(node, name, first)


def _handed_on(node: fx.Node, name: str, first: Constant) -> Constant | None:
    """The constant units of the result of a call that reads one value."""
    if name in _SAME:
        return first
    if name in _VIEWS:
        return _view(node, first)
    if name in POOLS:
        return _pool(node, first, POOLS[name])
    if _is_unary(node):
        return _unary(node, first)
    return None


def _leaf(walk: _Walk, node: fx.Node) -> Constant | None:
    found = walk.of(node.args[0])
    leaf = leaf_of(walk.program.module, node)
    if found is None or not isinstance(leaf, Gate):
        return found
    gate = leaf.settled().double()
    if gate.dim() and cast(int, node.args[1]) % node.meta["val"].dim() != found.axis:
        return None
    return Constant(found.axis, found.values * gate)


def _layer(walk: _Walk, layer: Layer) -> Constant | None:
    weight = walk.tensor(layer.weight)
    bias = walk.tensor(layer.bias)
    if weight is None or (layer.bias is not None and bias is None):
        return None
    axis = channel_axis(layer)
    g = layer.geometry
    source = walk.of(layer.source)
    if source is None or source.axis != axis:
        source = Constant(axis, weight.new_full((g.inputs,), float("nan")))
    varies = source.values.isnan()
    number = source.values.nan_to_num(0.0)
    if layer.transposed or any(g.padding):
        varies = varies | (number != 0)
    taps = by_input(weight, layer)
    touched = sum_inputs((taps != 0).any(-1).double(), varies.double(), g.groups) > 0
    out = sum_inputs(taps.sum(-1), torch.where(varies, 0.0, number), g.groups)
    out = out if bias is None else out + bias
    return Constant(axis, torch.where(touched, float("nan"), out))


def _batch_norm(walk: _Walk, node: fx.Node) -> Constant | None:
    names = ("weight", "bias", "running_mean", "running_var")
    given = [get_argument(node, n) for n in names]
    tensors = [walk.tensor(n) for n in given]
    if any(g is not None and t is None for g, t in zip(given, tensors, strict=True)):
        return None
    gamma, beta, mean, var = tensors
    if mean is None or var is None or get_argument(node, "training"):
        return None
    source = walk.of(node.args[0])
    values = mean * float("nan") if source is None or source.axis != 1 else source.values
    out = (values - mean) * (var + get_argument(node, "eps")).rsqrt()
    if gamma is not None:
        out = torch.where(gamma == 0, 0.0, out * gamma)
    return Constant(1, out if beta is None else out + beta)


def _sum(walk: _Walk, node: fx.Node) -> Constant | None:
    pair = _pair(walk, node)
    if pair is None:
        return None
    a, b = pair
    alpha = get_argument(node, "alpha") * (-1 if operator(node) == "sub" else 1)
    return Constant(a.axis, a.values + alpha * b.values)


def _product(walk: _Walk, node: fx.Node) -> Constant | None:
    pair = _pair(walk, node)
    if pair is None:
        return None
    a, b = pair
    zero = (a.values == 0) | (b.values == 0)
    return Constant(a.axis, torch.where(zero, 0.0, a.values * b.values))


def _pair(walk: _Walk, node: fx.Node) -> tuple[Constant, Constant] | None:
    """The constant units of both operands along one axis; a literal is constant, an unknown operand varies."""
    found = [walk.of(a) for a in node.args[:2]]
    one = next((f for f in found if f is not None), None)
    if one is None or len(node.args) < 2:
        return None
    sides: list[Constant] = []
    for argument, known in zip(node.args, found, strict=False):
        if not isinstance(argument, fx.Node):
            sides.append(
                Constant(one.axis, torch.full_like(one.values, float(cast(Any, argument))))
            )
        elif known is not None and known.axis == one.axis and _alike(node, argument, one.axis):
            sides.append(known)
        else:
            sides.append(Constant(one.axis, torch.full_like(one.values, float("nan"))))
    return sides[0], sides[1]


def _alike(node: fx.Node, operand: fx.Node, axis: int) -> bool:
    """Whether an operand has the rank of the result and its length along the axis."""
    a, b = node.meta["val"], operand.meta["val"]
    return a.dim() == b.dim() and str(a.shape[axis]) == str(b.shape[axis])


def _mean(walk: _Walk, node: fx.Node) -> Constant | None:
    found, rank = walk.of(node.args[0]), cast(fx.Node, node.args[0]).meta["val"].dim()
    if found is None or "dim" not in str(node.target._overloadname):  # type: ignore[union-attr]
        return None
    dims = {d % rank for d in get_argument(node, "dim") or range(rank)}
    if found.axis in dims:
        return None
    before = 0 if get_argument(node, "keepdim") else sum(d < found.axis for d in dims)
    return Constant(found.axis - before, found.values)


def _permute(walk: _Walk, node: fx.Node) -> Constant | None:
    found = walk.of(node.args[0])
    if found is None:
        return None
    rank = node.meta["val"].dim()
    order = list(range(rank))
    if operator(node) == "permute":
        order = [d % rank for d in get_argument(node, "dims")]
    else:
        a, b = (cast(int, d) % rank for d in node.args[1:3])
        order[a], order[b] = b, a
    return Constant(order.index(found.axis), found.values)


def _concatenate(walk: _Walk, node: fx.Node) -> Constant | None:
    rank = node.meta["val"].dim()
    axis = get_argument(node, "dim") % rank
    parts: list[Tensor] = []
    for part in cast(Any, node.args[0]):
        length, found = part.meta["val"].shape[axis], walk.of(part)
        if not isinstance(length, int):
            return None
        unknown = torch.full((length,), float("nan"), dtype=torch.float64)
        parts.append(unknown if found is None or found.axis != axis else found.values.cpu())
    return Constant(axis, torch.cat(parts))


_RULES: dict[str, Callable[[_Walk, fx.Node], Constant | None]] = {
    "batch_norm": _batch_norm,
    **dict.fromkeys(("add", "sub"), _sum),
    "mul": _product,
    "mean": _mean,
    **dict.fromkeys(("permute", "transpose"), _permute),
    **dict.fromkeys(("cat", "concat"), _concatenate),
}


def _view(node: fx.Node, first: Constant) -> Constant | None:
    """The constant units after a view that keeps the axis or merges the following axes into it."""
    old = [str(n) for n in cast(fx.Node, node.args[0]).meta["val"].shape]
    new = [str(n) for n in node.meta["val"].shape]
    axis = first.axis
    if new[: axis + 1] == old[: axis + 1]:
        return first
    inner = old[axis + 1 :]
    if len(new) != axis + 1 or new[:axis] != old[:axis] or not all(n.isdigit() for n in inner):
        return None
    return Constant(axis, first.values.repeat_interleave(prod(map(int, inner))))


def _pool(node: fx.Node, first: Constant, spatial: int) -> Constant | None:
    if first.axis != node.meta["val"].dim() - spatial - 1:
        return None
    padded = operator(node).startswith("avg") and _is_padded(get_argument(node, "padding"))
    if padded and get_argument(node, "count_include_pad"):
        return Constant(first.axis, torch.where(first.values == 0, first.values, float("nan")))
    return first


def _is_padded(padding: Any) -> bool:
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def _is_unary(node: fx.Node) -> bool:
    return (
        is_operator(node)
        and len(node.all_input_nodes) == 1
        and torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]
        and torch.Tag.nondeterministic_seeded not in node.target.tags  # type: ignore[union-attr]
        and node.meta["val"].dtype == node.all_input_nodes[0].meta["val"].dtype
        and node.meta["val"].is_floating_point()
        and len(node.meta["val"].shape) == len(node.all_input_nodes[0].meta["val"].shape)
    )


def _unary(node: fx.Node, first: Constant) -> Constant:
    out = cast(Any, node.target)(first.values, *node.args[1:], **node.kwargs)
    return Constant(first.axis, torch.where(first.values.isnan(), float("nan"), out))
