"""Fuses layers between which all operations are linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fxprune.graph.program import Program
from fxprune.pipeline import Context, Rewrite
from fxprune.verify import compare_functions
from fxprune_passes.rewrite.fuse.flattened import fuse_flattened
from fxprune_passes.rewrite.fuse.fusion import Fusion
from fxprune_passes.rewrite.fuse.pooled import fuse_pooled
from fxprune_passes.rewrite.fuse.rows import find_rows, fuse_row
from fxprune_passes.rewrite.fuse.scales import fuse_scale
from fxprune_passes.rewrite.fuse.sums import fuse_sum
from fxprune_passes.rewrite.layers.layer_cost import By, LayerCost


@dataclass(frozen=True)
class FuseLinear(Rewrite):
    """Fuses consecutive layers, layers that are summed, and scales and shifts of channels. Exact.

    - Consecutive convolutions or linear layers become one, also across a flatten or an average.
    - The channels between two layers that stay apart become as few as the rank of both weights together.
    - Branches of a sum that read the same value (layers, batch norms in eval mode, the value itself) become
      one layer.
    - A constant that every channel is multiplied by or that is added to it moves into the adjacent layer.
    - An average moves in front of a layer whose kernel covers a single position.

    A sequence of layers is divided into the fused parts with the lowest total cost.

    Attributes:
        when: cheaper: fuse where the fused layer costs no more than its parts; always: fuse wherever it is exact.
        allow_border: whether a sequence may be fused although values at the border change; the error is measured
            and reported in a remark, and the pass no longer declares to keep the function.
        by: whether the cost is MACs or the measured latency of each layer.
    """

    name: ClassVar[str] = "fuse-linear"
    when: Literal["cheaper", "always"] = "cheaper"
    allow_border: bool = False
    by: By = "macs"

    def __post_init__(self) -> None:
        if self.allow_border:
            object.__setattr__(self, "keeps", "nothing")

    def rewrite(self, program: Program, ctx: Context) -> Program:
        fusion = Fusion(
            ctx.edit(program),
            ctx,
            LayerCost(program, self.by),
            always=self.when == "always",
            allow_border=self.allow_border,
        )
        while _sweep(fusion):
            pass
        fusion.remark_left()
        after = fusion.editor.finish()
        if fusion.border_changed and after is not program:
            error = compare_functions(program, after).max_relative_error
            what = f"the outputs differ by at most {error:.1e}, relative to the largest output"
            ctx.remark("analysis", "border-error", program.name, what, "allow-border is set")
        return after


def _sweep(fusion: Fusion) -> bool:
    """Tries every candidate once, and returns whether anything was fused."""
    fusion.left = []
    tries = (fuse_scale, fuse_sum, fuse_pooled, fuse_flattened)
    done = [any(fuse(fusion, node) for fuse in tries) for node in fusion.editor.nodes]
    rows = list(find_rows(fusion))
    return any([*done, *(fuse_row(fusion, row) for row in rows)])
