"""A pass: the ReLU of a ReLU is that ReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxprune.graph.program import Program
from fxprune.pipeline import Context, Rewrite

RELU = torch.ops.aten.relu.default


@dataclass(frozen=True)
class MergeRelu(Rewrite):
    """Removes each ReLU whose input is a ReLU. Exact.

    Args:
        keep_first: leave that many alone.
    """

    name: ClassVar[str] = "example-merge-relu"
    keep_first: int = 0

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        seconds = [n for n in editor.nodes if n.target is RELU and _is_relu(n.args[0])]
        for i, node in enumerate(seconds):
            source = node.args[0]
            if i < self.keep_first:
                ctx.missed(node, "stays", f"keep-first={self.keep_first}", code="kept")
            elif isinstance(source, fx.Node) and ctx.allow(node, "dropped", code="dropped"):
                editor.replace(node, source)
        return editor.finish()


def _is_relu(value: object) -> bool:
    return isinstance(value, fx.Node) and value.target is RELU
