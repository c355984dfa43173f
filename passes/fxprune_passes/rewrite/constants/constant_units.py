"""Finds the units of each value that hold the same number for every input of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import fx, nn

from fxprune.graph.gate import Gate
from fxprune.graph.leaf import leaf_of
from fxprune.graph.operands import get_argument, is_operator
from fxprune.graph.program import Program
from fxprune.graph.sizes import Sizes
from fxprune.structure.paths import operator
from fxprune_passes.rewrite.constants.constant import Constant
from fxprune_passes.rewrite.constants.moved_constants import (
    joined_constant,
    moved_constant,
    split_source,
)
from fxprune_passes.rewrite.layers.affine_layer import Layer, channel_axis, read_layer
from fxprune_passes.rewrite.layers.channel_sums import by_input, sum_inputs
from fxprune_passes.rewrite.moves.moving_operators import POOLS, shifts_alike

Tensor = torch.Tensor

_SAME = frozenset("alias clone contiguous detach".split())
# In train mode they leave 0 what is 0, but change every other constant.
_DROPOUTS = frozenset(("dropout", "feature_dropout"))
_SHIFTING_DROPOUTS = frozenset(("alpha_dropout", "feature_alpha_dropout"))
# They make 0 of 0 for each unit by itself, and something that varies of other constants, or nothing exact.
_ZERO_OF_ZERO = frozenset(("prelu", "hardswish", "to", "_to_copy", "rms_norm"))

Known = Mapping[fx.Node, Constant]


def constant_units(
    program: Program, seeds: Known | None = None, *, weights: bool = True
) -> dict[fx.Node, Constant]:
    """The values of a program that have constant units.

    Constants originate in rows of zeros of a weight and in factors of 0 of a batch norm in eval mode.

    Args:
        program: a captured network.
        seeds: constant units of some values that are known beforehand.
        weights: whether constants may originate in weights; else only what follows from the seeds is found.
    """
    walk = _Walk(program, weights)
    for node in program.nodes:
        found = _visit(walk, node)
        if seeds and node in seeds:
            found = _both(found, seeds[node])
        if found is not None and found.any:
            walk.known[node] = found
    return walk.known


class _Walk:
    def __init__(self, program: Program, weights: bool) -> None:
        self.program, self.weights = program, weights
        self.tensors = program.tensors()
        self.sizes = Sizes.of_inputs(program.input_values())
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
    return Constant(a.axis, torch.where(b.values.isnan(), a.values, b.values.to(a.values)))


def _visit(walk: _Walk, node: fx.Node) -> Constant | None:
    name = operator(node)
    if node.op == "call_module":
        return _leaf(walk, node)
    if (layer := read_layer(node)) is not None:
        return _layer(walk, layer)
    if name in _RULES:
        return _RULES[name](walk, node)
    source = split_source(node) or (node.args[0] if node.args else None)
    first = walk.of(source)
    return None if first is None else _handed_on(walk, node, name, first)


def _handed_on(walk: _Walk, node: fx.Node, name: str, first: Constant) -> Constant | None:
    """The constant units of the result of a call that reads one value."""
    if name in _SAME:
        return first
    if name in _DROPOUTS | _SHIFTING_DROPOUTS:
        return _dropout(node, name, first)
    if name in POOLS:
        return _pool(node, first, POOLS[name])
    if name in _ZERO_OF_ZERO:
        return first.zeros()
    if _is_unary(node):
        return _unary(node, first)
    return moved_constant(node, first, walk.sizes)


def _dropout(node: fx.Node, name: str, first: Constant) -> Constant | None:
    if not get_argument(node, "train") or get_argument(node, "p") == 0:
        return first
    return first.zeros() if name in _DROPOUTS else None


def _leaf(walk: _Walk, node: fx.Node) -> Constant | None:
    found = walk.of(node.args[0])
    leaf = leaf_of(walk.program.module, node)
    if found is None or not isinstance(leaf, Gate):
        return found
    gate = leaf.settled().double()
    if gate.dim() and (
        cast(int, node.args[1]) % node.meta["val"].dim() != found.axis
        or gate.numel() != found.values.numel()
    ):
        return found.zeros()
    return Constant(found.axis, found.values * gate)


def _layer(walk: _Walk, layer: Layer) -> Constant | None:
    source = walk.of(layer.source)
    if source is None and not walk.weights:
        return None
    weight = walk.tensor(layer.weight)
    bias = walk.tensor(layer.bias)
    if weight is None or (layer.bias is not None and bias is None):
        return None
    axis = channel_axis(layer)
    g = layer.geometry
    if source is None or source.axis != axis:
        source = Constant(axis, weight.new_full((g.inputs,), float("nan")))
    source = Constant(axis, source.values.to(weight))
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
    source = walk.of(node.args[0])
    if source is None and not walk.weights:
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    given = [get_argument(node, n) for n in names]
    tensors = [walk.tensor(n) for n in given]
    if any(g is not None and t is None for g, t in zip(given, tensors, strict=True)):
        return None
    gamma, beta, mean, var = tensors
    if mean is None or var is None or get_argument(node, "training"):
        return None
    unknown = source is None or source.axis != 1
    values = mean * float("nan") if unknown else cast(Constant, source).values.to(mean)
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


def _quotient(walk: _Walk, node: fx.Node) -> Constant | None:
    pair = _pair(walk, node)
    if pair is None:
        return None
    a, b = pair
    zero = (a.values == 0) & (b.values != 0)
    return Constant(a.axis, torch.where(zero, 0.0, a.values / b.values))


def _pair(walk: _Walk, node: fx.Node) -> tuple[Constant, Constant] | None:
    """The constant units of both operands along one axis of the result; what is not known varies."""
    if len(node.args) < 2 or not isinstance(node.meta.get("val"), Tensor):
        return None
    rank = node.meta["val"].dim()
    for argument in node.args[:2]:
        one = walk.of(argument)
        if one is None:
            continue
        axis = one.axis + rank - cast(fx.Node, argument).meta["val"].dim()
        if str(node.meta["val"].shape[axis]) != str(len(one.values)):
            continue
        sides = [_side(walk, node, a, axis, one.values) for a in node.args[:2]]
        return sides[0], sides[1]
    return None


def _side(walk: _Walk, node: fx.Node, argument: Any, axis: int, like: Tensor) -> Constant:
    """What is known of one operand along an axis of the result: of a number, a stored vector, a value."""
    if not isinstance(argument, fx.Node):
        return Constant(axis, torch.full_like(like, float(argument)))
    value = argument.meta.get("val")
    place = axis - node.meta["val"].dim() + (value.dim() if isinstance(value, Tensor) else 0)
    found = walk.of(argument)
    if found is not None and found.axis == place and len(found.values) == len(like):
        return Constant(axis, found.values.to(like))
    stored = walk.tensors.get(str(argument.target)) if argument.op == "get_attr" else None
    if isinstance(stored, nn.Parameter) and stored.numel() == (
        stored.shape[place] if place >= 0 else 1
    ):
        return Constant(axis, stored.detach().double().reshape(-1).to(like).expand(len(like)))
    return Constant(axis, torch.full_like(like, float("nan")))


def _mean(walk: _Walk, node: fx.Node) -> Constant | None:
    return _reduced(walk, node)


def _total(walk: _Walk, node: fx.Node) -> Constant | None:
    """A sum or a norm over other axes: 0 of zeros; other constants would be counted."""
    found = _reduced(walk, node)
    return None if found is None else found.zeros()


def _reduced(walk: _Walk, node: fx.Node) -> Constant | None:
    """The constant units of the operand, where their axis is none of those that a node reduces."""
    found, rank = walk.of(node.args[0]), cast(fx.Node, node.args[0]).meta["val"].dim()
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    if found is None or "dim" not in names:
        return None
    given = get_argument(node, "dim")
    dims = {d % rank for d in ([given] if isinstance(given, int) else given or range(rank))}
    if found.axis in dims:
        return None
    before = 0 if get_argument(node, "keepdim") else sum(d < found.axis for d in dims)
    return Constant(found.axis - before, found.values)


def _matmul(walk: _Walk, node: fx.Node) -> Constant | None:
    """Rows of the first and columns of the second matrix that are 0; of a batch, those of either."""
    a, b = (cast(fx.Node, n) for n in node.args[:2])
    ranks = {n.meta["val"].dim() for n in (a, b, node)}
    if len(ranks) > 1:
        return None
    (rank,) = ranks
    sides = [(walk.of(a), rank - 1), (walk.of(b), rank - 2)]
    return _zeros_of([(one, place) for one, place in sides if one is not None])


def _attention(walk: _Walk, node: fx.Node) -> Constant | None:
    """Heads and features whose values are 0."""
    value = cast(fx.Node, node.args[2])
    found, rank = walk.of(value), node.meta["val"].dim()
    grouped = str(value.meta["val"].shape[:-2]) != str(node.meta["val"].shape[:-2])
    if found is None or value.meta["val"].dim() != rank or grouped:
        return None
    return _zeros_of([(found, rank - 2)])


def _zeros_of(sides: list[tuple[Constant, int]]) -> Constant | None:
    """The zeros of the first operand that has some along another axis than the one that is summed over."""
    for one, summed in sides:
        if one.axis != summed and one.zeros().any:
            return one.zeros()
    return None


def _concatenate(walk: _Walk, node: fx.Node) -> Constant | None:
    parts = cast("list[fx.Node]", node.args[0])
    found: Constant | None = joined_constant(node, [(part, walk.of(part)) for part in parts])
    return found


_RULES: dict[str, Callable[[_Walk, fx.Node], Constant | None]] = {
    "batch_norm": _batch_norm,
    **dict.fromkeys(("add", "sub"), _sum),
    "mul": _product,
    "div": _quotient,
    "mean": _mean,
    **dict.fromkeys(("sum", "linalg_vector_norm"), _total),
    **dict.fromkeys(("matmul", "bmm"), _matmul),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("cat", "concat"), _concatenate),
}


def _pool(node: fx.Node, first: Constant, spatial: int) -> Constant | None:
    if first.axis != node.meta["val"].dim() - spatial - 1:
        return None
    average = operator(node).startswith("avg")
    return first.zeros() if average and not shifts_alike(node) else first


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
