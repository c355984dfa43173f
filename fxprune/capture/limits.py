"""Limits of a dtype, such as `torch.finfo(x.dtype).min`, computed in the graph from a tensor of that dtype.

A graph has no dtype to ask. But a conversion of infinity to the nearest number gives the smallest or largest one, and
the number after 1 is larger by the machine epsilon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any, NamedTuple

import torch
from torch import fx

from fxprune.graph.operands import bind, get_argument, set_argument
from fxprune.torch_private import fake_result

aten = torch.ops.aten
LARGEST_HALF = torch.finfo(torch.float16).max
_ORIGIN = ("nn_module_stack", "stack_trace")


class Limit(NamedTuple):
    """Which limit of which dtype a number is: min, max or eps."""

    kind: str
    dtype: torch.dtype


LIMITS = {
    float(getattr(torch.finfo(dtype), kind)): Limit(kind, dtype)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for kind in ("min", "max", "eps")
}
_INFINITE = {"min": -inf, "max": inf}
_FILLS: dict[Any, str] = {
    aten.full.default: "fill_value",
    aten.full_like.default: "fill_value",
    aten.new_full.default: "fill_value",
    aten.scalar_tensor.default: "s",
}
# An operator, its overload that takes a tensor in place of a number, and what that calls its arguments.
_WITH_TENSOR: dict[Any, Any] = {
    aten.masked_fill.Scalar: aten.masked_fill.Tensor,
    aten.masked_fill_.Scalar: aten.masked_fill_.Tensor,
    aten.fill.Scalar: aten.fill.Tensor,
    aten.fill_.Scalar: aten.fill_.Tensor,
    aten.where.ScalarOther: aten.where.self,
    aten.where.ScalarSelf: aten.where.self,
    aten.clamp.default: aten.clamp.Tensor,
    aten.clamp_.default: aten.clamp_.Tensor,
    aten.clamp_min.default: aten.clamp_min.Tensor,
    aten.clamp_max.default: aten.clamp_max.Tensor,
    **{
        op: getattr(aten, name).Tensor
        for name in ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_")
        for op in (getattr(aten, name).Tensor, getattr(aten, name).Scalar)
    },
}
Find = Callable[[torch.Tensor, torch.dtype], fx.Node | None]


def follow_limits(node: fx.Node, names: Iterable[str], find: Find) -> list[str]:
    """Takes the named numbers of a call, which are limits, from a tensor of their dtype.

    Args:
        node: the call.
        names: which of its arguments.
        find: a node on the device of a value and of a dtype, or None.

    Returns:
        The names of those for which this is not possible.
    """
    left = []
    for name in sorted(names):
        limit = LIMITS[get_argument(node, name)]
        source = find(node.meta["val"], limit.dtype)
        if _FILLS.get(node.target) == name and limit.kind in _INFINITE:
            _fill(node, name, limit)
        elif source is not None and node.target in _WITH_TENSOR:
            _give_tensor(node, name, limit, source)
        else:
            left.append(name)
    return left


def _fill(node: fx.Node, name: str, limit: Limit) -> None:
    """Fills with infinity, and converts it to the nearest number."""
    set_argument(node, name, _INFINITE[limit.kind])
    with node.graph.inserting_after(node):
        near = add_call(node, aten.nan_to_num.default, (node,), {})
    node.replace_all_uses_with(near, delete_user_cb=lambda user: user is not near)


def _give_tensor(node: fx.Node, name: str, limit: Limit, source: fx.Node) -> None:
    """Calls the overload that takes tensors, with the limit as one of them."""
    with node.graph.inserting_before(node):
        value = _limit(node, limit.kind, source)
        positional, keywords = bind(node)
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        given = dict(zip(names, positional, strict=False)) | {name: value}
        if "clamp" in str(node.target):  # the other bound has to be a tensor too
            given = {k: _number(node, x, source) if k != name else x for k, x in given.items()}
    node.target = _WITH_TENSOR[node.target]
    node.args, node.kwargs = (
        tuple(given[k] for k in names if k in given and k not in keywords),
        keywords,
    )


def _limit(node: fx.Node, kind: str, source: fx.Node) -> fx.Node:
    if kind in _INFINITE:
        return add_call(
            node, aten.nan_to_num.default, (_number(node, _INFINITE[kind], source),), {}
        )
    one, two = _number(node, 1.0, source), _number(node, 2.0, source)
    after = add_call(node, aten.nextafter.default, (one, two), {})
    return add_call(node, aten.sub.Tensor, (after, one), {})


def _number(like: fx.Node, value: Any, source: fx.Node) -> Any:
    """A tensor of one number of the dtype of `source`; the value itself where it is none."""
    if not isinstance(value, int | float):
        return value
    return add_call(like, aten.new_full.default, (source, [], value), {})


def add_call(like: fx.Node, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
    """Adds a call at the insertion point of the graph, with the origin of another node."""
    name = op.overloadpacket.__name__
    new = like.graph.create_node("call_function", op, args, kwargs, name)
    new.meta = {k: like.meta[k] for k in _ORIGIN if k in like.meta}
    new.meta["val"] = fake_result(op, args, kwargs)
    return new
