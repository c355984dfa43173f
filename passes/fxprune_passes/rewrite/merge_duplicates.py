"""Computes once what a graph computes twice."""

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
from fxprune_passes.rewrite.effects import Memory, is_random, tensor_key, written

_PLAIN = ("_operator", "math", "torch")


@dataclass(frozen=True)
class MergeDuplicates(Rewrite):
    """Lets nodes of equal operator, arguments and mode share one result. Exact.

    Random operators, those that write, leaf modules and calls between which an argument is written to are never
    merged. Of a tensor with several names the first one read stays.
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
                node, f"merged with {first.name}", code="merged", why="both compute the same"
            ):
                editor.replace(node, first)
        return editor.finish()


def _key(
    editor: Editor, memory: Memory, writes: Counter[Hashable], node: fx.Node
) -> Hashable | None:
    """Equal for nodes of equal value; None where a node must stay alone."""
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
    """Equal for two names of one tensor, not for two views of one memory."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return "get_attr", str(node.target)
    tensor = editor.tensor(str(node.target))
    form = tuple(tensor.shape), tensor.stride(), tensor.dtype, type(tensor), tensor.requires_grad
    return "get_attr", tensor_key(editor, node), form


def _is_pure(node: fx.Node) -> bool:
    """Whether the value of a call depends on its arguments alone, and nothing else happens."""
    if node.op != "call_function" or is_random(node) or written(node) or node.is_impure():
        return False
    if overload(node) is not None:
        return "empty" not in str(node.target)
    plain = getattr(node.target, "__module__", "") in _PLAIN
    return plain and not isinstance(node.target, torch._ops.HigherOrderOperator)


def _is_written_result(memory: Memory, node: fx.Node) -> bool:
    """Whether a node makes memory of its own that another node writes to."""
    return node in memory.roots[node] and memory.is_written(node)


def _frozen(value: Any) -> Hashable:
    """A hashable that tells 1 from 1.0 and from True, and 0.0 from -0.0."""
    if isinstance(value, fx.Node):
        return value
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in sorted(value.items()))
    if isinstance(value, slice):
        return "slice", _frozen((value.start, value.stop, value.step))
    return type(value).__name__, repr(value)
