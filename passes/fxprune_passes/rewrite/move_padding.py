"""Moves the padding of a convolution in front of the convolution before it, so that both can be fused exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

from torch import fx

from fxprune.graph.operands import get_argument
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Keeps, Rewrite
from fxprune.structure.paths import operator
from fxprune.verify import compare_functions
from fxprune_passes.rewrite.fuse.fusion import Fusion
from fxprune_passes.rewrite.fuse.rows import (
    Segment,
    divide_row,
    find_rows,
    nodes_between,
    why_apart,
)
from fxprune_passes.rewrite.layers.affine_layer import Layer, read_layer
from fxprune_passes.rewrite.layers.layer_call import set_geometry
from fxprune_passes.rewrite.layers.layer_cost import By, LayerCost


@dataclass(frozen=True)
class MovePadding(Rewrite):
    """Moves padding between consecutive convolutions in front of them; values at the border change.

    Two padded convolutions with nothing but batch norms between them are not one convolution: the second pads
    with zeros where a single one would go on computing. With stride s and padding p, the first is padded by
    p1 + p2 s1 instead of p1 here, and the second not at all. The sizes and weights stay, as do all outputs
    whose windows did not reach the padding of the second layer. The measured change of the others is reported
    in a remark.

    Afterwards `fuse-linear` fuses both exactly, once `fold-batchnorm` has folded the norms. A network that
    trains on in this form adapts to its border. Until the layers are fused, the first one computes more
    positions than before, so by default padding moves only where `fuse-linear` will fuse.

    Attributes:
        when: cheaper: where the fused layer costs no more than its parts; always: everywhere.
        by: whether the cost is MACs or the measured latency of each layer.
    """

    name: ClassVar[str] = "move-padding"
    keeps: ClassVar[Keeps] = "nothing"
    when: Literal["cheaper", "always"] = "cheaper"
    by: By = "macs"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        fusion = Fusion(
            ctx.edit(program),
            ctx,
            LayerCost(program, self.by),
            always=self.when == "always",
            allow_border=True,
        )
        _leave_other_modes(fusion)
        for row in list(find_rows(fusion, norms=True)):
            if why := _mode_before(row[0].source):
                fusion.leave(row[0].node, "the padding behind it stays", why, "mode")
                continue
            parts = divide_row(fusion, row)
            for one, two in pairwise(parts):
                if any(two.layers[0].geometry.padding):
                    why, code = why_apart(fusion, one, two)
                    fusion.leave(two.layers[0].node, "its padding stays", why, code)
            for part in parts:
                _move(fusion, part)
        fusion.remark_left()
        after = fusion.editor.finish()
        if after is not program:
            error = compare_functions(program, after).max_relative_error
            what = f"the outputs differ by at most {error:.1e}, relative to the largest output"
            ctx.remark(
                "analysis", "border-error", program.name, what, "the border is padded earlier"
            )
        return after


def _leave_other_modes(fusion: Fusion) -> None:
    """Records the layers between which a pad lies that is not an argument of a convolution."""
    for node in fusion.editor.nodes:
        layer = read_layer(node)
        if layer is None or not _is_pad(layer.source):
            continue
        if any(read_layer(n) is not None for n in _back(layer.source.args[0])):
            why = f"{layer.source.name} pads with mode {_mode(layer.source)} between the layers"
            fusion.leave(node, "its padding stays", why, "mode")


def _back(value: Any) -> Iterator[fx.Node]:
    """A value and, where it is that of a batch norm, the values before it."""
    while isinstance(value, fx.Node):
        yield value
        value = value.args[0] if operator(value) == "batch_norm" else None


def _mode_before(source: fx.Node) -> str:
    """Why zeros must not be padded to a value: it was padded with other numbers; "" where they may."""
    if not _is_pad(source) or _mode(source) == "zeros":
        return ""
    return f"{source.name} pads with mode {_mode(source)}, and zeros around that would be a third border"


def _is_pad(node: fx.Node) -> bool:
    return "pad" in operator(node)


def _mode(pad: fx.Node) -> str:
    """The mode of a pad, `zeros` where it pads with zeros."""
    name = operator(pad)
    if name not in ("pad", "constant_pad_nd"):
        return name.partition("_pad")[0]
    mode = get_argument(pad, "mode") if name == "pad" else "constant"
    return str(mode) if mode != "constant" or get_argument(pad, "value") else "zeros"


def _move(fusion: Fusion, part: Segment) -> None:
    """Moves all padding inside a segment in front of its first layer, unless it is exact as it is."""
    first, *rest = part.layers
    between = {layer.node: nodes_between(layer) for layer in rest}
    exact = not part.objection and not any(between.values())
    if exact or not any(any(layer.geometry.padding) for layer in rest):
        return
    old = sum(fusion.cost.of(x.geometry, x.source, x.node) for x in part.layers)
    what = f"padded by {list(part.geometry.padding)} instead of {list(first.geometry.padding)}"
    why = f"{', '.join(x.node.name for x in rest)} behind it no longer pads; fused, both cost "
    if not fusion.allow(first.node, what, "moved", why + fusion.text(part.cost, old)):
        return
    _pad(fusion, first, part.geometry.padding)
    for layer in rest:
        for node in reversed(between[layer.node]):
            fusion.editor.retype(node)
        _pad(fusion, layer, (0,) * layer.geometry.spatial)


def _pad(fusion: Fusion, layer: Layer, padding: tuple[int, ...]) -> None:
    set_geometry(layer.node, layer.source, replace(layer.geometry, padding=padding))
    fusion.editor.retype(layer.node)
