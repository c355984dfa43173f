"""A program in which some values are 0: what deleting layers comes to, in a graph that keeps all its names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fxprune.errors import PlanError
from fxprune.graph.editor import Editor
from fxprune.graph.operands import get_argument
from fxprune.graph.program import Program, describe
from fxprune.structure.paths import Flow
from fxprune.structure.zeros import KEEP_ZERO, PRODUCTS, bias_of, leaves_bias, operation


@dataclass(frozen=True, eq=False)
class Silent:
    """A program with zeros.

    Attributes:
        names: the nodes of the program before whose values were set to 0.
        program: the program; what only the zeros made needless may still be in its graph.
        zero: the names of the nodes of the program before whose values are 0.
        moved: the names of nodes of the program before that are gone -> of those that have their values.
    """

    names: tuple[str, ...]
    program: Program
    zero: frozenset[str]
    moved: Mapping[str, str]

    @cached_property
    def live(self) -> frozenset[str]:
        """The names of the nodes on whose values an output depends."""
        flow = Flow.of(self.program)
        found = {n for n in flow.order if not flow.readers[n]}
        waiting = list(found)
        while waiting:
            new = set(flow.inputs[waiting.pop()]) - found
            found |= new
            waiting += new
        return frozenset(n.name for n in found)

    def passes_on(self, name: str) -> bool:
        """Whether the value of a node of the program before is not 0 and still needed, perhaps as another's."""
        return name not in self.zero and (name in self.live or name in self.moved)


def with_zeros(program: Program, names: Iterable[str]) -> Silent:
    """The program in which the values of some nodes are 0; sums with a 0 are left out.

    Args:
        program: stays as it is.
        names: of nodes.
    """
    editor, first = Editor(program), tuple(names)
    zero = {editor.node(name) for name in first}
    moved: dict[str, str] = {}
    for node in editor.nodes:
        if node in zero or zero.isdisjoint(node.all_input_nodes):
            continue
        if _is_zero(node, zero, editor.leaf(node) is not None):
            zero.add(node)
        elif (other := _other_term(node, zero)) is not None:
            moved[node.name] = other.name
            node.replace_all_uses_with(other)
    known = frozenset(node.name for node in zero)
    for node in zero:
        _put_zeros(editor, node, [u for u in node.users if u not in zero and u.name not in moved])
    return Silent(first, editor.finish(), known, _ends(moved))


def _ends(moved: Mapping[str, str]) -> dict[str, str]:
    """Each name with the last of the names to which it leads."""
    found = {}
    for name, last in moved.items():
        while last in moved:
            last = moved[last]
        found[name] = last
    return found


def _put_zeros(editor: Editor, node: fx.Node, readers: list[fx.Node]) -> None:
    """Lets those that read a node read zeros of its size."""
    if not readers:
        return
    if not isinstance(node.meta.get("val"), torch.Tensor):
        raise PlanError(
            "a deleted value cannot be written back",
            where=describe(node),
            why="it is no single tensor, and others read it",
            do="use the program of the result",
        )
    like = editor.call(torch.ops.aten.zeros_like.default, (node,), before=node.next, like=node)
    for reader in readers:
        reader.replace_input_with(node, like)


def _is_zero(node: fx.Node, zero: set[fx.Node], is_leaf: bool) -> bool:
    name = operation(node)
    if name in ("cat", "stack"):
        return all(p in zero for p in node.args[0])  # type: ignore[union-attr]
    if name in ("add", "sub"):
        return all(a in zero for a in node.args[:2])
    if name == "scaled_dot_product_attention":
        return node.args[2] in zero
    if name in PRODUCTS:
        return any(a in zero for a in node.args[:2])
    first = bool(node.args) and node.args[0] in zero
    if name == "div" and node.args[1] in zero:
        return False
    unbiased = leaves_bias(node) and bias_of(node) is None
    return first and (is_leaf or name in KEEP_ZERO or unbiased)


def _other_term(node: fx.Node, zero: set[fx.Node]) -> fx.Node | None:
    """The operand of a sum with 0 that is the sum."""
    if operation(node) not in ("add", "sub") or len(node.args) < 2:
        return None
    a, b = node.args[:2]
    if b in zero and isinstance(a, fx.Node) and _alike(a, node):
        return a
    plain = operation(node) == "add" and get_argument(node, "alpha") == 1
    return b if plain and a in zero and isinstance(b, fx.Node) and _alike(b, node) else None


def _alike(a: fx.Node, b: fx.Node) -> bool:
    x, y = a.meta.get("val"), b.meta.get("val")
    return (
        isinstance(x, torch.Tensor)
        and isinstance(y, torch.Tensor)
        and x.dtype == y.dtype
        and _spelled(x) == _spelled(y)
    )


def _spelled(x: Any) -> list[str]:
    return [str(n) for n in x.shape]
