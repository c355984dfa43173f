"""Which nodes of a graph may share memory, and which memory is written to."""

from __future__ import annotations

from collections.abc import Hashable

from torch import fx

from fxprune.graph.editor import Editor
from fxprune.graph.operands import get_argument, is_operator
from fxprune.torch_private import aliased, overload
from fxprune_passes.rewrite.effects.calls import written

# It may return its argument itself, which its schema does not say.
_ALIASING = frozenset(("aten::type_as",))


class Memory:
    """Which nodes may share memory, and which memory is written to.

    A root stands for one piece of memory: a stored tensor (one root for all its names), an input, or a
    newly allocated result.

    Attributes:
        roots: for each node, the memory that its value may lie in.
        written: the memory that at least one node writes to.
    """

    def __init__(self, editor: Editor) -> None:
        self.roots: dict[fx.Node, frozenset[Hashable]] = {}
        self.written: set[Hashable] = set()
        for node in editor.nodes:
            self.roots[node] = self._roots(editor, node)
            for target in written(node):
                self.written |= self.roots[target]

    def is_written(self, node: fx.Node) -> bool:
        """Whether a node of the graph writes to the memory that a value may lie in."""
        return not self.written.isdisjoint(self.roots[node])

    def _roots(self, editor: Editor, node: fx.Node) -> frozenset[Hashable]:
        if node.op == "get_attr":
            return frozenset((tensor_key(editor, node),))
        if node.op in ("placeholder", "output"):
            return frozenset((node,))
        found = (self.roots[source] for source in _shared(node))
        return frozenset().union(*found) or frozenset((node,))


def _shared(node: fx.Node) -> list[fx.Node]:
    """The arguments that a value may share memory with; all of them where the schema does not say."""
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
    """A key that is equal for two get_attr nodes of the same tensor, whatever their names."""
    try:
        tensor = editor.tensor(str(node.target))
    except (KeyError, AttributeError):  # the graph of a torch.cond branch
        return str(node.target)
    address = 0 if tensor.is_meta else tensor.data_ptr()
    return (str(tensor.device), address) if address else id(tensor)
