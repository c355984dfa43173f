"""Makes one layer of several between which nothing but linear happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fxprune.graph.program import Program
from fxprune.pipeline import Context, Rewrite
from fxprune.verify import compare_functions
from fxprune_passes.rewrite.fuse_flattened import fuse_flattened
from fxprune_passes.rewrite.fuse_pooled import fuse_pooled
from fxprune_passes.rewrite.fuse_rows import find_rows, fuse_row
from fxprune_passes.rewrite.fuse_scales import fuse_scale
from fxprune_passes.rewrite.fuse_sums import fuse_sum
from fxprune_passes.rewrite.fusion import Fusion
from fxprune_passes.rewrite.layer_cost import By, LayerCost


@dataclass(frozen=True)
class FuseLinear(Rewrite):
    """Fuses layers in a row, layers that are summed, and scales and shifts of channels. Exact.

    A row of convolutions or linear layers becomes one, through a flatten or an average too; branches of a sum
    that read the same value (layers, eval-mode batch norm, the value itself) become one layer; a constant
    multiplied or added per channel goes into the layer beside it; an average goes before a layer of one tap.
    Where a row is cut is chosen so that the cost of all is least.

    Attributes:
        when: cheaper: where one layer costs no more than the several; always: where it is exact.
        allow_border: whether a row may be fused though values at the border change; the error is measured
            and remarked on, and the pass no longer declares to keep the function.
        by: whether cost is MACs or measured latency of each layer.
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
            what = f"the outputs differ by at most {error:.1e} of the largest"
            ctx.remark("analysis", "border-error", program.name, what, "allow-border was given")
        return after


def _sweep(fusion: Fusion) -> bool:
    """Tries every candidate once; whether anything was fused."""
    fusion.left = []
    tries = (fuse_scale, fuse_sum, fuse_pooled, fuse_flattened)
    done = [any(fuse(fusion, node) for fuse in tries) for node in fusion.editor.nodes]
    rows = list(find_rows(fusion))
    return any([*done, *(fuse_row(fusion, row) for row in rows)])
