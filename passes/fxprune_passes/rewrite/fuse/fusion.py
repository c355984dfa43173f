"""The state of one run of fuse-linear: the graph, the options, and the candidates that were not fused."""

from __future__ import annotations

from torch import fx

from fxprune.graph.editor import Editor
from fxprune.pipeline import Context
from fxprune_passes.rewrite.effects.memory import Memory
from fxprune_passes.rewrite.effects.ownership import Ownership
from fxprune_passes.rewrite.layers.layer_cost import LayerCost


class Fusion:
    """One run of the pass; permission that was refused once is not requested again.

    Args:
        editor: the editor of the program.
        ctx: receives the remarks.
        cost: the costs of layers.
        always: whether to fuse wherever it is exact, even at a higher cost.
        allow_border: whether values at the border may change.

    Attributes:
        border_changed: whether a fusion has changed values at the border.
        left: the candidates that were not fused: node, what, why, code.
    """

    def __init__(
        self, editor: Editor, ctx: Context, cost: LayerCost, *, always: bool, allow_border: bool
    ) -> None:
        self.editor, self.cost, self.always, self.allow_border = editor, cost, always, allow_border
        self.owners, self.memory = Ownership(editor), Memory(editor)
        self.left: list[tuple[fx.Node, str, str, str]] = []
        self.border_changed = False
        self._ctx = ctx
        self._refused: set[str] = set()

    def is_refused(self, node: fx.Node) -> bool:
        """Whether permission for a fusion at this node has been refused."""
        return node.name in self._refused

    def allow(self, node: fx.Node, what: str, code: str, why: str = "") -> bool:
        """Requests permission for one fusion."""
        if self.is_refused(node):
            return False
        if self._ctx.allow(node, what, code=code, why=why):
            return True
        self._refused.add(node.name)
        return False

    def leave(self, node: fx.Node, what: str, why: str, code: str) -> bool:
        """Records why a candidate is not fused; returns False."""
        self.left.append((node, what, why, code))
        return False

    def remark_left(self) -> None:
        """Emits a remark for each candidate that the last sweep left."""
        for node, what, why, code in self.left:
            self._ctx.missed(node, what, why, code=code)

    def remove(self, node: fx.Node, value: fx.Node) -> None:
        """Replaces a node by another value and erases it at once: readers without use would prevent other fusions."""
        self.editor.replace(node, value)
        self.editor.graph.erase_node(node)

    def costs_more(self, new: float, old: float) -> bool:
        """Whether a fusion is rejected because of its cost."""
        return not self.always and new > old

    def text(self, new: float, old: float) -> str:
        """Both costs as text."""
        return f"{self.cost.text(new)} instead of {self.cost.text(old)}"
