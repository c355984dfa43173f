"""What calls do beside giving a value: writes, random draws, memory that several nodes share."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import fx

from fxprune.graph.editor import Editor, gathers_statistics
from fxprune.graph.operands import get_argument, is_operator
from fxprune.torch_private import aliased, mutated, overload

# It may hand on its argument itself, which its schema does not say.
_ALIASING = frozenset(("aten::type_as",))


def is_random(node: fx.Node) -> bool:
    """Whether a node's operator draws random numbers, in some mode at least."""
    op = overload(node)
    return op is not None and torch.Tag.nondeterministic_seeded in op.tags


def draws_now(node: fx.Node) -> bool:
    """Whether a node draws random numbers as it is called: dropout that is off does not."""
    if not is_random(node):
        return False
    names = {a.name for a in node.target._schema.arguments}  # type: ignore[union-attr]
    flag = next((n for n in ("train", "training", "dropout_p") if n in names), None)
    return flag is None or bool(get_argument(node, flag))


def written(node: fx.Node) -> tuple[fx.Node, ...]:
    """The arguments that a node writes to."""
    op = overload(node)
    if op is None:
        return ()
    names = [op._schema.arguments[i].name for i in mutated(op)]
    if gathers_statistics(node):
        names += ["running_mean", "running_var"]
    found = (get_argument(node, n) for n in names)
    return tuple(x for x in found if isinstance(x, fx.Node))


class Memory:
    """Which nodes may share memory, and which memory is written to.

    A root stands for one piece of memory: a tensor (one for all its names), an input, a fresh result.

    Attributes:
        roots: by node, the memory that its value may be in.
        written: the memory that some node writes to.
    """

    def __init__(self, editor: Editor) -> None:
        self.roots: dict[fx.Node, frozenset[Hashable]] = {}
        self.written: set[Hashable] = set()
        for node in editor.nodes:
            self.roots[node] = self._roots(editor, node)
            for target in written(node):
                self.written |= self.roots[target]

    def is_written(self, node: fx.Node) -> bool:
        """Whether some node writes to the memory that a value may be in."""
        return not self.written.isdisjoint(self.roots[node])

    def _roots(self, editor: Editor, node: fx.Node) -> frozenset[Hashable]:
        if node.op == "get_attr":
            return frozenset((tensor_key(editor, node),))
        if node.op in ("placeholder", "output"):
            return frozenset((node,))
        found = (self.roots[source] for source in _shared(node))
        return frozenset().union(*found) or frozenset((node,))


def _shared(node: fx.Node) -> list[fx.Node]:
    """The arguments that a value may share memory with; all of them where nobody says."""
    op = overload(node)
    if op is None or op._schema.name in _ALIASING:
        return node.all_input_nodes
    if not is_operator(node):
        return []
    places = [op._schema.arguments[i].name for i in aliased(op)]
    values = [get_argument(node, name) for name in places]
    found: list[fx.Node] = []
    fx.map_arg(values, found.append)
    return found


def tensor_key(editor: Editor, node: fx.Node) -> Hashable:
    """Equal for two get_attr nodes of one tensor, by whatever names."""
    try:
        tensor = editor.tensor(str(node.target))
    except (KeyError, AttributeError):  # a branch's graph
        return str(node.target)
    address = 0 if tensor.is_meta else tensor.data_ptr()
    return (str(tensor.device), address) if address else id(tensor)


class Ownership:
    """Who else reads a tensor: one that has a second reader must not change."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._names: dict[Hashable, list[fx.Node]] = {}
        self._key: dict[fx.Node, Hashable] = {}
        for node in editor.graph.find_nodes(op="get_attr"):
            self._key[node] = tensor_key(editor, node)
            self._names.setdefault(self._key[node], []).append(node)

    def objection(self, *tensors: fx.Node | None) -> str:
        """Why tensors must stay as they are; "" where each is a parameter or buffer read once."""
        return next((why for t in tensors if t is not None and (why := self._objection(t))), "")

    def _objection(self, node: fx.Node) -> str:
        if node.op != "get_attr":
            return f"{node.name} is computed, not a parameter"
        same = self._names.get(self._key.get(node), [node])
        names = sorted({str(n.target) for n in same if n.users})
        if len(names) > 1:
            return f"one tensor is {' and '.join(names)}"
        readers = sum(_times_read(n) for n in same)
        if readers > 1:
            return f"{node.target} is read {readers} times"
        return ""


def _times_read(node: fx.Node) -> int:
    """How many arguments of other nodes a node is."""
    return sum(1 for user in node.users for _ in _places(user, node))


def _places(user: fx.Node, node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg((user.args, user.kwargs), found.append)
    return [x for x in found if x is node]
