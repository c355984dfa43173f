"""Who reads each stored tensor: a tensor with a second reader must not change."""

from __future__ import annotations

from collections.abc import Hashable

from torch import fx

from fxprune.graph.editor import Editor
from fxprune_passes.rewrite.effects.memory import tensor_key


class Ownership:
    """Who reads each tensor: a tensor with a second reader must not change."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._names: dict[Hashable, list[fx.Node]] = {}
        self._key: dict[fx.Node, Hashable] = {}
        for node in editor.graph.find_nodes(op="get_attr"):
            self._key[node] = tensor_key(editor, node)
            self._names.setdefault(self._key[node], []).append(node)

    def objection(self, *tensors: fx.Node | None) -> str:
        """Why tensors must not change; "" where each is a parameter or buffer that is read once."""
        return next((why for t in tensors if t is not None and (why := self._objection(t))), "")

    def _objection(self, node: fx.Node) -> str:
        if node.op != "get_attr":
            return f"{node.name} is computed, not a parameter"
        same = self._names.get(self._key.get(node), [node])
        names = sorted({str(n.target) for n in same if n.users})
        if len(names) > 1:
            return f"{' and '.join(names)} are one tensor"
        readers = sum(_times_read(n) for n in same)
        if readers > 1:
            return f"{node.target} is read {readers} times"
        return ""


def _times_read(node: fx.Node) -> int:
    """How often a node is an argument of other nodes."""
    return sum(1 for user in node.users for _ in _places(user, node))


def _places(user: fx.Node, node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg((user.args, user.kwargs), found.append)
    return [x for x in found if x is node]
