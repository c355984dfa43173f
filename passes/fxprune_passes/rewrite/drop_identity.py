"""Removes nodes whose output is their input."""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem
from typing import ClassVar, cast

from torch import fx

from fxprune.graph.operands import get_argument, is_operator
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Rewrite
from fxprune.structure.paths import operator

DROPOUT = (
    "aten::dropout",
    "aten::feature_dropout",
    "aten::alpha_dropout",
    "aten::feature_alpha_dropout",
)


_SPLITS = frozenset(("split", "split_with_sizes", "chunk", "tensor_split"))
# Where these give the shape of their input, they give their input.
_SHAPES = frozenset(
    f"aten::{name}" for name in ("slice", "narrow", "expand", "view", "reshape", "flatten")
)
_NEUTRAL = {"aten::mul": 1, "aten::div": 1, "aten::add": 0, "aten::sub": 0}


@dataclass(frozen=True)
class DropIdentity(Rewrite):
    """Removes dropout that is off, multiplications by 1, additions of 0, what joins a split, slices of all. Exact.

    In train mode dropout stays. The result of an eval-mode program has no dropout to switch on again.
    """

    name: ClassVar[str] = "drop-identity"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        for node in editor.nodes:
            source = handed_on(node)
            if source is not None and ctx.allow(
                node, "dropped", code="dropped", why="its output is its input"
            ):
                editor.replace(node, source)
        return editor.finish()


def handed_on(node: fx.Node) -> fx.Node | None:
    """The value, of the same shape and type, that a node hands on as it is; None where it does more."""
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
    """Whether the result of a call has the sizes and the type of its first argument."""
    old, new = cast(fx.Node, node.args[0]).meta["val"], node.meta["val"]
    return old.dtype == new.dtype and [str(n) for n in old.shape] == [str(n) for n in new.shape]


def _operand_of_neutral(node: fx.Node, neutral: int | None) -> fx.Node | None:
    """`x` of `x * 1` and the like."""
    if neutral is None or len(node.args) < 2:
        return None
    source, other = node.args[:2]
    if isinstance(other, fx.Node) or other != neutral or not isinstance(source, fx.Node):
        return None
    return source if source.meta["val"].dtype == node.meta["val"].dtype else None


def split_value(cat: fx.Node) -> fx.Node | None:
    """The value whose parts a concatenation joins again, all of them in their order; None where it does not."""
    parts = cast("list[fx.Node]", get_argument(cat, "tensors"))
    if any(part.target is not getitem for part in parts):
        return None
    splits = {cast(fx.Node, part.args[0]) for part in parts}
    split = splits.pop()
    if splits or operator(split) not in _SPLITS:
        return None
    count, rank = len(split.meta["val"]), cat.meta["val"].dim()
    same_axis = get_argument(cat, "dim") % rank == get_argument(split, "dim") % rank
    whole = [part.args[1] for part in parts] == list(range(count))
    return cast(fx.Node, split.args[0]) if whole and same_axis else None
