"""In-place operators to functional ones, where no other value sees the write."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.graph.memory import Memory, writes
from fxprune.graph.program import describe
from fxprune.remark import Remark
from fxprune.torch_private import (
    fake_result,
    functional,
    overload,
    without_out,
)

aten = torch.ops.aten


def make_functional(graph: fx.Graph) -> list[Remark]:
    """Replaces `aten.foo_` by `aten.foo` where that computes the same.

    Buffers and parameters stay written in place. So does a tensor whose memory another value that
    is read later may share; the solver treats what stays with care.
    """
    writing = writes(graph)
    if not writing:
        return []
    memory, remarks = Memory(graph), []
    for node in writing:
        if _is_safe(node, memory):
            if _writes_input(node, memory):
                remarks.append(_input_remark(node))
            _replace(node, memory)
    return remarks


def write_copies(graph: fx.Graph) -> None:
    """Replaces `aten.foo.out(..., out=x)` by `x.copy_(aten.foo(...))`, which couples x with what is written.

    An operator that would resize its `out` is left as it is.
    """
    for node in writes(graph):
        op = overload(node)
        twin = None if op is None else without_out(op)
        target = node.kwargs.get("out")
        if twin is None or not isinstance(target, fx.Node) or not _keeps_size(target, node):
            continue
        kwargs = {k: v for k, v in node.kwargs.items() if k != "out"}
        with graph.inserting_before(node):
            value = graph.call_function(twin, node.args, kwargs)
        value.meta = {**node.meta, "val": fake_result(twin, node.args, kwargs)}
        node.target = torch.ops.aten.copy_.default
        node.args, node.kwargs = (target, value), {}


def _keeps_size(target: fx.Node, node: fx.Node) -> bool:
    before, after = target.meta.get("val"), node.meta.get("val")
    return (
        isinstance(before, torch.Tensor)
        and isinstance(after, torch.Tensor)
        and before.shape == after.shape
    )


def _is_safe(node: fx.Node, memory: Memory) -> bool:
    op, target = overload(node), node.args[0] if node.args else None
    if op is None or functional(op) is None or not isinstance(target, fx.Node):
        return False
    now = memory.order[node]
    for other in memory.sharing(target):
        if other.op == "get_attr":
            return False
        before = other is not target and memory.order[other] < now
        before = before and not memory.apart(other, target)
        if before and any(memory.order[u] > now for u in other.users):
            return False
    return _same_type(node, functional(op))


def _same_type(node: fx.Node, twin: Any) -> bool:
    """Whether the functional operator returns the dtype and shape of what it writes to."""
    inputs = [n.meta.get("val") for n in node.all_input_nodes]
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    if not tensors or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    if len(tensors) == 1 and tensors[0].is_floating_point():
        return True
    result = fake_result(twin, node.args, node.kwargs)
    own = tensors[0]
    return bool(result.dtype == own.dtype and len(result.shape) == len(own.shape))


def _writes_input(node: fx.Node, memory: Memory) -> bool:
    target = node.args[0]
    assert isinstance(target, fx.Node)
    return any(other.op == "placeholder" for other in memory.sharing(target))


def _input_remark(node: fx.Node) -> Remark:
    return Remark(
        "analysis",
        "capture.input-write-dropped",
        describe(node),
        "the model writes to its input; the captured program does not",
        "a program that leaves its inputs alone can be compared with another one",
        "copy the result yourself where the caller relies on the written input",
    )


def _replace(node: fx.Node, memory: Memory) -> None:
    """Puts the functional operator in; what read the written tensor later reads the result."""
    target, now = node.args[0], memory.order[node]
    op = overload(node)
    assert isinstance(target, fx.Node)
    assert op is not None
    twin = functional(op)
    assert twin is not None
    if twin is aten.copy.default:  # it has no derivative
        _clone(node, memory)
    else:
        node.target = twin
    target.replace_all_uses_with(node, delete_user_cb=lambda user: memory.order[user] > now)


def _clone(node: fx.Node, memory: Memory) -> None:
    """Makes `target.copy_(source)` a copy of the source, in the shape, type and device of the target."""
    target, source = node.args[:2]
    assert isinstance(target, fx.Node)
    assert isinstance(source, fx.Node)
    wanted = target.meta["val"]
    given = source.meta["val"]
    other_shape = list(map(str, given.shape)) != list(map(str, wanted.shape))
    other_type = (given.dtype, given.device) != (wanted.dtype, wanted.device)
    for op in other_shape * [aten.expand_as.default] + other_type * [aten.type_as.default]:
        with node.graph.inserting_before(node):
            new = node.graph.call_function(op, (source, target))
        new.meta = {**node.meta, "val": fake_result(op, (source, target), {})}
        memory.order[new], source = memory.order[node], new
    node.target, node.args, node.kwargs = aten.clone.default, (source,), {}
