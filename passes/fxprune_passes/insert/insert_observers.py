"""Inserts observers of activation functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from torch import fx

from fxprune.graph.editor import Editor
from fxprune.graph.leaf import leaf_of
from fxprune.graph.program import Program, module_path
from fxprune.observe import KINDS, Stat
from fxprune.pipeline import Context, Rewrite
from fxprune.structure.activations import Activation, find_activations
from fxprune.structure.paths import operator
from fxprune_passes.insert.places.channel_axis import channel_axis
from fxprune_passes.insert.places.unit_places import MOVERS
from fxprune_passes.insert.places.weighted import weight_of
from fxprune_passes.rewrite.layers.affine_layer import Layer, read_layer
from fxprune_passes.rewrite.moves.moving_operators import POOLS

# An activation is recognised after these operators: they only move, average or take the maximum of numbers.
_HANDED_ON = MOVERS | {"mean"} | POOLS.keys()


@dataclass(frozen=True)
class _Place:
    """A value to observe, the readers that will read the observer, and its further arguments."""

    value: fx.Node
    readers: tuple[fx.Node, ...]
    path: str
    axis: int | None
    layer: tuple[Any, ...] = ()


@dataclass(frozen=True)
class InsertObservers(Rewrite):
    """Inserts observers of activation functions; every output stays the same.

    - on-fraction, entropy: observe the input of each activation function.
    - mean, max, covariance: observe the output of each activation function that a weighted layer reads.
    - contribution: observe the input of each linear layer and convolution that comes from an activation function,
      or from a product with one (as in the gated layers of language models).

    Args:
        stat: the statistic, see above and `fxprune.observe`.
        where: glob of the paths of the modules that contain the activations; for contribution, of the layers.
        signed: whether contributions keep their signs.
    """

    name: ClassVar[str] = "insert-observers"
    stat: Stat = "on-fraction"
    where: str = "*"
    signed: bool = False

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        for place in self._places(program, ctx):
            if not fnmatchcase(place.path, self.where):
                continue
            if isinstance(leaf_of(program.module, place.value), KINDS[self.stat]):
                ctx.missed(
                    place.value, "no observer inserted", "it already has one", code="observed"
                )
                continue
            size = self._size(place, ctx)
            what = f"inserted an observer of {self.stat} of {size} units in {place.path}"
            if size is not None and ctx.allow(place.value, what, code="inserted"):
                self._put(editor, place, size)
        return editor.finish()

    def _put(self, editor: Editor, place: _Place, size: int) -> None:
        value = editor.node(place.value)
        options = {"signed": True} if self.stat == "contribution" and self.signed else {}
        observer = KINDS[self.stat](size, value.meta["val"].device, **options)
        path = editor.add_leaf(f"{place.path}.observer".lstrip("."), observer)
        readers = [editor.node(r) for r in place.readers]
        args = (value, place.axis, *fx.map_arg(place.layer, editor.node))
        node = editor.call_leaf(path, args, before=readers[0], like=readers[0])
        for reader in readers:
            reader.replace_input_with(value, node)

    def _places(self, program: Program, ctx: Context) -> Iterator[_Place]:
        if self.stat == "contribution":
            yield from _layer_inputs(program, ctx)
            return
        for one in find_activations(program):
            if self.stat in ("on-fraction", "entropy"):
                yield self._before(one, program, ctx)
            elif _feeds_a_layer(one.node):
                yield self._behind(one, program, ctx)

    def _before(self, one: Activation, program: Program, ctx: Context) -> _Place:
        axis = channel_axis(ctx.axes(program), one.source)
        return _Place(one.source, one.readers, module_path(one.node), axis)

    def _behind(self, one: Activation, program: Program, ctx: Context) -> _Place:
        axis = channel_axis(ctx.axes(program), one.node)
        readers = tuple(sorted(one.node.users))
        return _Place(one.node, readers, module_path(one.node), axis)

    def _size(self, place: _Place, ctx: Context) -> int | None:
        """The number of units of the value; None, with a remark, where it is not known."""
        why = ""
        if place.axis is None:
            why = "none of its axes is known to carry the units of a single weighted layer"
        elif not isinstance(size := place.value.meta["val"].shape[place.axis], int):
            why = "the length of its axis is not fixed"
        elif not place.value.meta["val"].is_floating_point():
            why = "it is not a floating-point tensor"
        else:
            return size
        ctx.missed(place.value, "no observer inserted", why, code="no-axis")
        return None


def _layer_inputs(program: Program, ctx: Context) -> Iterator[_Place]:
    """The inputs of weighted layers that come from an activation function."""
    ends = {one.node for one in find_activations(program)}
    for node in program.nodes:
        weight = weight_of(node)
        if not weight or not _comes_from(node.all_input_nodes[0], ends):
            continue
        layer = read_layer(node)
        why = _formless(layer)
        if layer is None or why:
            ctx.missed(node, "no observer inserted", why, code="no-form")
            continue
        g = layer.geometry
        window = (g.stride, g.padding, g.dilation) if g.spatial else ()
        axis = layer.source.meta["val"].dim() + layer.axis
        path = weight.rpartition(".")[0]
        told = (layer.weight, *map(list, window))
        yield _Place(layer.source, (node,), path, axis, told)


def _formless(layer: Layer | None) -> str:
    """Why contributions to a layer are not defined; "" where they are."""
    if layer is None or layer.transposed:
        return "contributions are defined for linear layers and convolutions with symmetric padding only"
    if layer.geometry.inputs == layer.geometry.groups > 1:
        return "each of its outputs reads one input channel, so there is nothing to share"
    return ""


def _comes_from(value: fx.Node, ends: set[fx.Node]) -> bool:
    """Whether a value is the moved or pooled output of one of the nodes, or its product with another value."""
    while value not in ends:
        if operator(value) == "mul":
            return any(_comes_from(n, ends) for n in value.all_input_nodes)
        if operator(value) not in _HANDED_ON and value.op != "call_module":
            return False
        value = value.all_input_nodes[0]
    return True


def _feeds_a_layer(value: fx.Node) -> bool:
    """Whether a weighted layer reads a value, directly or through other nodes."""
    seen: set[fx.Node] = set()
    todo = list(value.users)
    while todo:
        node = todo.pop()
        if weight_of(node):
            return True
        if node not in seen:
            seen.add(node)
            todo += node.users
    return False
