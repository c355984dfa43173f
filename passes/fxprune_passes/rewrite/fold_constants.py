"""Computes the values that do not depend on the inputs once and stores them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import fx, nn

from fxprune.graph.editor import Editor
from fxprune.graph.program import Program, module_path
from fxprune.pipeline import Context, Rewrite
from fxprune.structure.paths import operator, type_source
from fxprune.torch_private import aliased, overload
from fxprune_passes.rewrite.effects.calls import is_random, written
from fxprune_passes.rewrite.effects.memory import Memory

_FILLS = frozenset(
    ("full", "zeros", "ones", "scalar_tensor", "empty", "new_full", "new_zeros", "new_ones")
)
_ALWAYS = 4096  # bytes; a result up to this size is always folded


@dataclass(frozen=True)
class FoldConstants(Rewrite):
    """Computes and stores the values that depend on parameters, buffers and literals only. Exact.

    Attributes:
        max_growth: the bytes that may be added in total, as a share of those stored before; results of up to
            4 KiB do not count.
        parameters: whether values that require a gradient are folded as well; the result then is a parameter
            that replaces those it was computed from.
    """

    name: ClassVar[str] = "fold-constants"
    max_growth: float = 0.05
    parameters: bool = False

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        constants = _Constants(editor)
        room = self.max_growth * sum(_bytes(t) for t in program.tensors().values())
        for node in constants.results():
            value = constants.value(node)
            trained = constants.trained(node)
            if trained and not self.parameters:
                ctx.missed(
                    node,
                    "it is computed at every call although it depends on parameters only",
                    f"training would no longer reach {', '.join(sorted(trained))}",
                    code="trained",
                    do="set parameters=true once training is over",
                )
                continue
            growth = _bytes(value) - sum(_bytes(t) for t in constants.freed(node))
            if growth > max(room, _ALWAYS):
                why = f"the result takes {growth} bytes more than the tensors it is computed from"
                ctx.missed(
                    node, "it is computed at every call", why, code="size", do="raise max_growth"
                )
            elif ctx.allow(
                node,
                "computed once and stored",
                code="folded",
                why="it does not depend on any input",
            ):
                room -= growth if growth > _ALWAYS else 0
                editor.replace(node, _store(editor, node, value, bool(trained)))
        return editor.finish()


class _Constants:
    """The nodes of a graph that do not depend on any input, and their values."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        memory = Memory(editor)
        self._values: dict[fx.Node, Any] = {}
        for node in editor.nodes:
            if node.op == "get_attr":
                if not memory.is_written(node):
                    self._read(node)
            elif self._is_constant(node) and not memory.is_written(node):
                self._compute(node)

    def results(self) -> Iterable[fx.Node]:
        """The computed tensors that the rest of the graph reads; views of them stay in the graph."""
        found: dict[fx.Node, None] = {}
        for node in self._values:
            if any(user not in self._values for user in node.users):
                source = self._behind_views(node)
                if source.op != "get_attr" and isinstance(self._values[source], torch.Tensor):
                    found[source] = None
        return [n for n in found if operator(n) not in _FILLS]

    def value(self, node: fx.Node) -> torch.Tensor:
        """The value of a node, which must be a tensor."""
        found = self._values[node]
        assert isinstance(found, torch.Tensor)
        return found

    def trained(self, node: fx.Node) -> set[str]:
        """The names of the parameters with gradients from which a node is computed."""
        return {n for n in self._sources(node) if self._editor.tensor(n).requires_grad}

    def freed(self, node: fx.Node) -> list[torch.Tensor]:
        """The stored tensors from which nothing but the node is computed."""
        inside = self._behind(node)
        names = {str(n.target) for n in inside if n.op == "get_attr"}
        kept = {
            str(n.target)
            for n in self._editor.graph.find_nodes(op="get_attr")
            if any(not inside.issuperset(self._readers_to(u, node)) for u in n.users)
        }
        return [self._editor.tensor(n) for n in names - kept]

    def _readers_to(self, reader: fx.Node, end: fx.Node) -> set[fx.Node]:
        """A reader and all nodes that depend on it, up to but without `end`."""
        found: set[fx.Node] = set()
        waiting = [reader]
        while waiting:
            node = waiting.pop()
            if node is not end and node not in found:
                found.add(node)
                waiting += node.users
        return found

    def _sources(self, node: fx.Node) -> set[str]:
        return {str(n.target) for n in self._behind(node) if n.op == "get_attr"}

    def _behind(self, node: fx.Node) -> set[fx.Node]:
        """A node and all nodes that it is computed from."""
        found: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += one.all_input_nodes
        return found

    def _read(self, node: fx.Node) -> None:
        try:
            tensor = self._editor.tensor(str(node.target))
        except (KeyError, AttributeError):  # the graph of a torch.cond branch
            return
        if not tensor.is_meta:
            self._values[node] = tensor

    def _is_constant(self, node: fx.Node) -> bool:
        pure = overload(node) is not None or node.target in _PLAIN
        if node.op != "call_function" or not pure or is_random(node) or written(node):
            return False
        if node.is_impure() or "empty" in operator(node):
            return False
        known = (s in self._values or s is type_source(node) for s in node.all_input_nodes)
        return all(known)

    def _compute(self, node: fx.Node) -> None:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._operand)
        with torch.no_grad():
            self._values[node] = node.target(*args, **kwargs)  # type: ignore[operator]

    def _operand(self, node: fx.Node) -> Any:
        """The value of an argument; a tensor of the same dtype and device where no more than those is read."""
        if node in self._values:
            return self._values[node]
        return torch.empty(0, dtype=node.meta["val"].dtype, device=node.meta["val"].device)

    def _behind_views(self, node: fx.Node) -> fx.Node:
        """The stored tensor of which a value is a view; else the smallest of the values it is a view of."""
        chain = [node]
        while (source := self._viewed(chain[-1])) is not None:
            chain.append(source)
        if chain[-1].op == "get_attr" or not isinstance(self._values[node], torch.Tensor):
            return chain[-1]
        return min(reversed(chain), key=lambda n: self.value(n).numel())

    def _viewed(self, node: fx.Node) -> fx.Node | None:
        op = overload(node)
        if op is None or not aliased(op) or len(node.all_input_nodes) != 1:
            return None
        source = node.all_input_nodes[0]
        value, whole = self._values[node], self._values[source]
        if not isinstance(value, torch.Tensor) or not isinstance(whole, torch.Tensor):
            return None
        same = value.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        return source if same else None


_PLAIN = frozenset((getitem,))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _store(editor: Editor, node: fx.Node, value: torch.Tensor, trained: bool) -> fx.Node:
    """Stores a tensor under the module that computed it, and returns the node that reads it."""
    path = module_path(node)
    known = all(part.isidentifier() or part.isdigit() for part in path.split("."))
    name = editor.free_name(f"{path}.{node.name}" if path and known else node.name)
    value = value.detach().clone()
    floating = value.is_floating_point() or value.is_complex()
    tensor = nn.Parameter(value) if trained and floating else value
    stored = editor.add_tensor(name, tensor, before=node)
    stored.meta.update(node.meta)
    return stored
