"""Removes nodes whose output is their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import fx

from fxprune.operands import get_argument, is_operator
from fxprune.pipeline import Context, Rewrite
from fxprune.program import Program

DROPOUT = (
    "aten::dropout",
    "aten::feature_dropout",
    "aten::alpha_dropout",
    "aten::feature_alpha_dropout",
)


@dataclass(frozen=True)
class DropIdentity(Rewrite):
    """Removes dropout that is off or of probability 0, multiplications by 1 and additions of 0. Exact.

    In train mode dropout stays. The result of an eval-mode program has no dropout to switch on again.
    """

    name: ClassVar[str] = "drop-identity"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        for node in filter(is_identity, editor.nodes):
            if ctx.allow(node, "dropped", code="dropped", why="its output is its input"):
                editor.replace(node, cast(fx.Node, node.args[0]))
        return editor.finish()


def is_identity(node: fx.Node) -> bool:
    """Whether a node hands on its first argument, of the same shape and type."""
    if not is_operator(node):
        return False
    name = node.target._schema.name  # type: ignore[union-attr]
    if name in DROPOUT:
        return not get_argument(node, "train") or get_argument(node, "p") == 0
    neutral = {"aten::mul": 1, "aten::div": 1, "aten::add": 0, "aten::sub": 0}.get(name)
    if (
        neutral is None
        or len(node.args) < 2
        or isinstance(node.args[1], fx.Node)
        or node.args[1] != neutral
    ):
        return False
    source = node.args[0]
    return isinstance(source, fx.Node) and source.meta["val"].dtype == node.meta["val"].dtype
