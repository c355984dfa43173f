"""Removes nodes that return their input unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import fx

from fxprune.graph.operands import get_argument, is_operator
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Rewrite
from fxprune_passes.rewrite.moves.rejoined_split import split_value

DROPOUT = (
    "aten::dropout",
    "aten::feature_dropout",
    "aten::alpha_dropout",
    "aten::feature_alpha_dropout",
)

# Where the result of one of these has the shape of its input, it is its input.
_SHAPES = frozenset(
    f"aten::{name}" for name in ("slice", "narrow", "expand", "view", "reshape", "flatten")
)
_NEUTRAL = {"aten::mul": 1, "aten::div": 1, "aten::add": 0, "aten::sub": 0}


@dataclass(frozen=True)
class DropIdentity(Rewrite):
    """Removes nodes that return their input unchanged, such as inactive dropout or a multiplication by 1. Exact.

    These are dropout in eval mode or with probability 0, multiplications and divisions by 1, additions and
    subtractions of 0, concatenations of all parts of a split in their order, and slices, expansions and views
    to the shape that the value already has. In train mode dropout stays; once removed from a program in eval
    mode, it cannot be switched on again.
    """

    name: ClassVar[str] = "drop-identity"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        for node in editor.nodes:
            source = handed_on(node)
            if source is not None and ctx.allow(
                node, "removed", code="dropped", why="it returns its input unchanged"
            ):
                editor.replace(node, source)
        return editor.finish()


def handed_on(node: fx.Node) -> fx.Node | None:
    """The value that a node returns unchanged, in the same shape and dtype; None where it does more."""
    if not is_operator(node):
        return None
    name = node.target._schema.name  # type: ignore[union-attr]
    if name in ("aten::cat", "aten::concat"):
        return split_value(node)
    if name in _SHAPES and _keeps_shape(node):
        return cast(fx.Node, node.args[0])
    if name in DROPOUT:
        off = not get_argument(node, "train") or get_argument(node, "p") == 0
        return cast(fx.Node, node.args[0]) if off else None
    return _operand_of_neutral(node, _NEUTRAL.get(name))


def _keeps_shape(node: fx.Node) -> bool:
    """Whether the result of a call has the shape and the dtype of its first argument."""
    old, new = cast(fx.Node, node.args[0]).meta["val"], node.meta["val"]
    return old.dtype == new.dtype and [str(n) for n in old.shape] == [str(n) for n in new.shape]


def _operand_of_neutral(node: fx.Node, neutral: int | None) -> fx.Node | None:
    """The operand `x` of a neutral operation such as `x * 1`; None where the operation is not neutral."""
    if neutral is None or len(node.args) < 2:
        return None
    source, other = node.args[:2]
    if isinstance(other, fx.Node) or other != neutral or not isinstance(source, fx.Node):
        return None
    return source if source.meta["val"].dtype == node.meta["val"].dtype else None
