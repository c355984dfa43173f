"""Fuses a layer and the linear layer that reads its flattened or averaged feature map.

Both together are affine in all numbers of a sample, so they are one linear layer on the flattened input. Its weight is
that of the second layer multiplied by the Jacobian of the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import fx

from fxprune.structure.paths import operator, value_readers
from fxprune_passes.rewrite.fuse.fusion import Fusion
from fxprune_passes.rewrite.layers.affine_layer import Geometry, Layer, read_layer
from fxprune_passes.rewrite.layers.layer_call import set_geometry
from fxprune_passes.rewrite.layers.stored_weights import (
    layer_bias,
    layer_weight,
    set_bias,
    set_weight,
)
from fxprune_passes.rewrite.moves.moving_operators import is_view, moved_value, shifts_alike

Tensor = torch.Tensor
aten = torch.ops.aten


@dataclass(frozen=True)
class _Run:
    """A layer, the nodes that move or average its output, and the linear layer that reads the result.

    Attributes:
        first: the first layer; all axes of its input but the first have static sizes.
        between: the nodes in between, in execution order.
        last: the linear layer.
    """

    first: Layer
    between: tuple[fx.Node, ...]
    last: Layer

    @property
    def sizes(self) -> list[int]:
        """The sizes of one sample of the input."""
        return list(self.first.source.meta["val"].shape[1:])

    @property
    def geometry(self) -> Geometry:
        """The geometry of the fused layer."""
        return Geometry(prod(self.sizes), self.last.geometry.outputs, 1, (), (), (), ())


def fuse_flattened(fusion: Fusion, node: fx.Node) -> bool:
    """Fuses a linear layer with the layer whose flattened or averaged map it reads; returns whether it did."""
    run = _read_run(node)
    if run is None:
        return False
    first = run.first.node
    if why := _objection(fusion, run):
        return fusion.leave(node, f"not fused with {first.name}", why, "row")
    flat = fusion.editor.call(aten.flatten.using_ints, (run.first.source, 1), before=first)
    old = fusion.cost.of(run.first.geometry, run.first.source, first)
    old += fusion.cost.of(run.last.geometry, run.last.source, node)
    new = fusion.cost.of(run.geometry, flat, node)
    costs = fusion.text(new, old)
    if fusion.costs_more(new, old):
        fusion.editor.graph.erase_node(flat)
        why = f"the fused layer would cost {costs}"
        return fusion.leave(node, f"not fused with {first.name}", why, "cost")
    if not fusion.allow(node, f"fused with {first.name}", "fused", costs):
        fusion.editor.graph.erase_node(flat)
        return False
    _fuse(fusion, run, flat)
    return True


def _read_run(node: fx.Node) -> _Run | None:
    last = read_layer(node)
    if last is None or last.geometry.spatial or last.source.meta["val"].dim() != 2:
        return None
    between: list[fx.Node] = []
    value = last.source
    while (first := read_layer(value)) is None:
        source = moved_value(value)
        if source is None or not shifts_alike(value) or not _by_sample(value, source):
            return None
        between.append(value)
        value = source
    if not between or not _by_sample(value, first.source):
        return None
    return _Run(first, tuple(reversed(between)), last)


def _by_sample(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node processes each sample separately, and all sizes of a sample are known."""
    old, new = source.meta["val"].shape, node.meta["val"].shape
    kept = str(old[0]) == str(new[0]) and len(old) > 1 and len(new) > 1
    stays = operator(node) not in ("permute", "transpose", "swapaxes") or _keeps_first(node)
    return kept and stays and all(isinstance(n, int) for n in (*old[1:], *new[1:]))


def _keeps_first(node: fx.Node) -> bool:
    """Whether a permutation leaves the first axis where it is."""
    rank = node.meta["val"].dim()
    if operator(node) == "permute":
        return bool(cast(Any, node.args[1])[0] % rank == 0)
    return all(cast(int, d) % rank for d in node.args[1:3])


def _objection(fusion: Fusion, run: _Run) -> str:
    if run.first.transposed:
        return "transposed convolutions are not fused"
    for value in (run.first.node, *run.between):
        if (count := len(value_readers(value))) > 1:
            return f"{value.name} has {count} readers"
    return fusion.owners.objection(*run.first.tensors, *run.last.tensors)


def _fuse(fusion: Fusion, run: _Run, flat: fx.Node) -> None:
    editor, last = fusion.editor, run.last
    weight = layer_weight(editor, last)
    inputs = weight.new_zeros(len(weight), *run.sizes, requires_grad=True)
    with torch.enable_grad():
        constant = _through(fusion, run, inputs)
        (back,) = torch.autograd.grad(constant, inputs, weight)
    bias = layer_bias(editor, last) + weight @ constant.detach()[0]
    set_weight(editor, last, back.flatten(1))
    if run.first.bias is not None or last.bias is not None:
        set_bias(editor, last, bias)
    set_geometry(last.node, flat, run.geometry)
    for node in (*reversed(run.between), run.first.node):
        if not node.users:
            editor.graph.erase_node(node)


def _through(fusion: Fusion, run: _Run, value: Tensor) -> Tensor:
    """The value that the linear layer would read, computed in float64."""

    def stored(node: fx.Node) -> Tensor:
        return fusion.editor.tensor(str(node.target)).detach().double()

    for node in (run.first.node, *run.between):
        if is_view(node):
            value = value.reshape(len(value), *node.meta["val"].shape[1:])
        else:
            args, kwargs = fx.map_arg((node.args[1:], node.kwargs), stored)
            value = cast(Any, node.target)(value, *args, **kwargs)
    return value
