"""Removes constant units and adds their contribution to the biases of the layers that read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod

import numpy as np
import torch

from fxprune.analysis.axes import Axes, lost_positions
from fxprune.analysis.group import find_groups
from fxprune.graph.editor import Editor
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Unit
from fxprune_passes.rewrite.constants.carried_constants import carried, carried_map
from fxprune_passes.rewrite.constants.constant_units import Known
from fxprune_passes.rewrite.constants.dead import Candidates, known_values, uses_of_sums
from fxprune_passes.rewrite.layers.affine_layer import Layer, read_layer
from fxprune_passes.rewrite.layers.stored_weights import layer_bias, set_bias
from fxprune_passes.rewrite.scales.mean_square import is_mean_square, keep_mean_square


def remove_dead(program: Program, ctx: Context, known: Known, found: Candidates) -> Program:
    """Removes constant units from each dependency group and moves their constants into the following biases."""
    for reader, why in found.refused.items():
        ctx.missed(reader, "the constant units it reads stay", why, code="stays")
    axes = ctx.axes(program)
    chosen: list[Unit] = []
    for group in find_groups(axes):
        dead = [u for u in group.units.tolist() if u in found.units]
        if dead and len(dead) == len(group):
            ctx.missed(
                group.name, "one of its units stays", "all of them are constant", code="last"
            )
            dead = dead[1:]
        what = f"removed {len(dead)} of {len(group)} units"
        if dead and ctx.allow(group.name, what, code="removed", why="they are constant"):
            chosen += dead
    return remove_constant(program, ctx, known, chosen)


def remove_constant(
    program: Program, ctx: Context, known: Known, chosen: Sequence[Unit]
) -> Program:
    """Removes units that `find_dead` found; biases and mean squares take up what that leaves out."""
    if not chosen:
        return program
    axes = ctx.axes(program)
    moved = dict(_moved(program, axes, known, chosen))
    shares = dict(_shares(axes, chosen))
    small = _carry(ctx.remove(program, chosen), ctx, moved)
    editor = ctx.edit(small)
    for name, share in shares.items():
        keep_mean_square(editor, editor.node(name), share, trained=program.training)
    return editor.finish()


def _shares(axes: Axes, chosen: Iterable[Unit]) -> Iterator[tuple[str, float]]:
    """Which share of its positions is left to each norm that takes a mean square, by the name of its node."""
    gone = np.zeros(axes.n_units, bool)
    gone[list(chosen)] = True
    for node, marks in axes.marks.items():
        labels = [axes.final(x) for x in marks.statistics] if is_mean_square(node) else []
        share = prod(1 - lost_positions(x, gone).mean() for x in labels)
        if share < 1:
            yield node.name, float(share)


def _moved(
    program: Program, axes: Axes, known: Known, chosen: Iterable[Unit]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The contribution of the removed units to each layer that reads them, by the name of its node.

    Each is `[out]`, or `[out, *positions]` for a padded convolution.
    """
    gone = np.zeros(axes.n_units, bool)
    gone[list(chosen)] = True
    tensors = program.tensors()
    for use in uses_of_sums(axes):
        layer = read_layer(use.reader)
        if layer is None or layer.source is not use.value:
            continue
        label = axes.final(axes.nodes[use.value][use.axis])
        lost = torch.from_numpy(lost_positions(label, gone))
        values = torch.where(lost, known_values(known, use, len(label)), 0.0).nan_to_num(0.0)
        if bool(values.any()):
            weight = tensors[str(layer.weight.target)].detach().double()
            give = carried_map if any(layer.geometry.padding) else carried
            yield use.reader.name, give(weight, layer, values.to(weight))


def _carry(small: Program, ctx: Context, moved: dict[str, torch.Tensor]) -> Program:
    editor = ctx.edit(small)
    assert ctx.applied is not None
    for name, shift in moved.items():
        layer = read_layer(editor.node(name))
        assert isinstance(layer, Layer)
        kept = ctx.applied.kept.get(str(layer.weight.target), {}).get(0)
        shift = shift if kept is None else shift[torch.from_numpy(kept).to(shift.device)]
        if shift.dim() > 1:
            _add_map(editor, layer, shift)
        else:
            set_bias(editor, layer, layer_bias(editor, layer) + shift)
    return editor.finish()


def _add_map(editor: Editor, layer: Layer, shift: torch.Tensor) -> None:
    """Stores a map and adds it to the output of a layer."""
    weight, node = str(layer.weight.target), layer.node
    name = editor.free_name(f"{weight.rpartition('.')[0]}.border".lstrip("."))
    stored = editor.add_tensor(name, shift.to(editor.tensor(weight).dtype), before=node.next)
    total = editor.call(torch.ops.aten.add.Tensor, (node, stored), before=stored.next, like=node)
    editor.replace(node, total)
