"""What the parts of fuse-linear share: the graph they change, what they may do, and what they left."""

from __future__ import annotations

from torch import fx

from fxprune.graph.editor import Editor
from fxprune.graph.operands import get_argument
from fxprune.pipeline import Context
from fxprune_passes.rewrite.affine_layer import Geometry
from fxprune_passes.rewrite.effects import Memory, Ownership
from fxprune_passes.rewrite.layer_cost import LayerCost, operator_of, window_of


class Fusion:
    """One run of the pass: what was refused leave is not asked for again.

    Args:
        editor: of the program.
        ctx: takes the remarks.
        cost: of layers.
        always: whether to fuse what is exact though it costs more.
        allow_border: whether values at the border may change.

    Attributes:
        border_changed: whether some did.
        left: what was seen and not fused: where, what, why, code.
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
        """Whether leave was asked for something at a node, and refused."""
        return node.name in self._refused

    def allow(self, node: fx.Node, what: str, code: str, why: str = "") -> bool:
        """Asks leave for one fusion."""
        if self.is_refused(node):
            return False
        if self._ctx.allow(node, what, code=code, why=why):
            return True
        self._refused.add(node.name)
        return False

    def leave(self, node: fx.Node, what: str, why: str, code: str) -> bool:
        """Notes why a candidate stays."""
        self.left.append((node, what, why, code))
        return False

    def remark_left(self) -> None:
        """Remarks on all that was left by the last sweep."""
        for node, what, why, code in self.left:
            self._ctx.missed(node, what, why, code=code)

    def remove(self, node: fx.Node, value: fx.Node) -> None:
        """Lets another value stand for a node, which goes at once: dead readers bar other fusions."""
        self.editor.replace(node, value)
        self.editor.graph.erase_node(node)

    def costs_more(self, new: float, old: float) -> bool:
        """Whether a fusion is not worth it."""
        return not self.always and new > old

    def text(self, new: float, old: float) -> str:
        """The two costs in words."""
        return f"{self.cost.text(new)} in place of {self.cost.text(old)}"


def respell(node: fx.Node, source: fx.Node, geometry: Geometry) -> None:
    """Lets a layer's node call the layer of another geometry, with the weight and bias it names."""
    weight, bias = get_argument(node, "weight"), get_argument(node, "bias")
    node.target = operator_of(geometry)
    node.args, node.kwargs = (source, weight, bias, *window_of(geometry)), {}
