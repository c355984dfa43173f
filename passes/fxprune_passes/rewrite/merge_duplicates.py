"""Merges nodes that compute the same value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxprune.graph.editor import Editor
from fxprune.graph.mode import MODE
from fxprune.graph.operands import bind
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Rewrite
from fxprune.torch_private import overload
from fxprune_passes.rewrite.effects.calls import is_random, written
from fxprune_passes.rewrite.effects.memory import Memory, tensor_key

_PLAIN = ("_operator", "math", "torch")


@dataclass(frozen=True)
class MergeDuplicates(Rewrite):
    """Merges nodes with the same operator, arguments and mode. Exact.

    Random operators, operators that write to a tensor, leaf modules, and calls between which an argument is
    written to are never merged. Of a tensor with several names, the name that is read first stays.
    """

    name: ClassVar[str] = "merge-duplicates"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        memory = Memory(editor)
        writes: Counter[Hashable] = Counter()
        known: dict[Hashable, fx.Node] = {}
        for node in editor.nodes:
            for target in written(node):
                writes.update(memory.roots[target])
            key = _key(editor, memory, writes, node)
            if key is None:
                continue
            first = known.setdefault(key, node)
            if first is not node and ctx.allow(
                node, f"merged with {first.name}", code="merged", why="both compute the same value"
            ):
                editor.replace(node, first)
        return editor.finish()


def _key(
    editor: Editor, memory: Memory, writes: Counter[Hashable], node: fx.Node
) -> Hashable | None:
    """A key that is equal for nodes with equal values; None where a node must not be merged."""
    if node.op == "get_attr":
        return _stored(editor, node)
    if not _is_pure(node) or _is_written_result(memory, node):
        return None
    operands = bind(node) if overload(node) is not None else (node.args, dict(node.kwargs))
    versions = tuple(
        (str(root), writes[root])
        for source in node.all_input_nodes
        for root in memory.roots[source]
        if writes[root]
    )
    target = node.target if overload(node) is not None else repr(node.target)
    return target, _frozen(operands), _frozen(node.meta.get(MODE)), frozenset(versions)


def _stored(editor: Editor, node: fx.Node) -> Hashable:
    """A key that is equal for two names of one tensor, but not for two views of one memory."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return "get_attr", str(node.target)
    tensor = editor.tensor(str(node.target))
    form = tuple(tensor.shape), tensor.stride(), tensor.dtype, type(tensor), tensor.requires_grad
    return "get_attr", tensor_key(editor, node), form


def _is_pure(node: fx.Node) -> bool:
    """Whether a call depends on its arguments alone and has no side effects."""
    if node.op != "call_function" or is_random(node) or written(node) or node.is_impure():
        return False
    if overload(node) is not None:
        return "empty" not in str(node.target)
    plain = getattr(node.target, "__module__", "") in _PLAIN
    return plain and not isinstance(node.target, torch._ops.HigherOrderOperator)


def _is_written_result(memory: Memory, node: fx.Node) -> bool:
    """Whether a node allocates memory that another node writes to."""
    return node in memory.roots[node] and memory.is_written(node)


def _frozen(value: Any) -> Hashable:
    """A hashable form of an argument that distinguishes 1 from 1.0 and True, and 0.0 from -0.0."""
    if isinstance(value, fx.Node):
        return value
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in sorted(value.items()))
    if isinstance(value, slice):
        return "slice", _frozen((value.start, value.stop, value.step))
    return type(value).__name__, repr(value)
