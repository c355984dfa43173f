"""Passes for testing pass managers (one that can be wrong, one that raises, one that changes values), and a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import fx, nn

from fxprune.graph.program import Program
from fxprune.pipeline import Context, Keeps, Rewrite


@dataclass(frozen=True)
class DropOnes(Rewrite):
    """Removes multiplications by 1; the one with number `bad` becomes a multiplication by 2."""

    name: ClassVar[str] = "drop-ones"
    bad: int = 0

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        ones = [n for n in editor.nodes if n.target is torch.ops.aten.mul.Tensor]
        for i, node in enumerate(ones, 1):
            if ctx.allow(node, f"multiplication {i}", code="dropped"):
                if i == self.bad:
                    node.args = (node.args[0], 2)
                else:
                    editor.replace(node, cast(fx.Node, node.args[0]))
        return editor.finish()


@dataclass(frozen=True)
class Raises(Rewrite):
    """Raises an error."""

    name: ClassVar[str] = "raises"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        raise ZeroDivisionError("nothing to divide by")


@dataclass(frozen=True)
class Scale(Rewrite):
    """Doubles a tensor, and declares that it changes the function."""

    name: ClassVar[str] = "scale"
    keeps: ClassVar[Keeps] = "nothing"
    tensor: str = "0.weight"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        if ctx.allow(self.tensor, "doubled", code="doubled"):
            editor.set_tensor(self.tensor, editor.tensor(self.tensor).detach() * 2)
        return editor.finish()


class Ones(nn.Module):
    """A linear layer, then forty multiplications by 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        for _ in range(40):
            x = x * 1
        return x
