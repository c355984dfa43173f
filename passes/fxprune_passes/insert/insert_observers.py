"""Puts observers into a graph."""

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
from fxprune_passes.insert.channels import channel_axis
from fxprune_passes.insert.layer_ends import weight_of
from fxprune_passes.insert.unit_places import MOVERS
from fxprune_passes.rewrite.affine_layer import Layer, read_layer

# An activation is seen behind them: they hand numbers on, or take the largest or the mean of some.
_HANDED_ON = (
    MOVERS
    | {"mean"}
    | {
        f"{adaptive}{kind}_pool{d}d"
        for adaptive in ("", "adaptive_")
        for kind in ("avg", "max")
        for d in (1, 2, 3)
    }
)


@dataclass(frozen=True)
class _Place:
    """A value to observe, who reads it through the observer, and what else the observer is told."""

    value: fx.Node
    readers: tuple[fx.Node, ...]
    path: str
    axis: int | None
    layer: tuple[Any, ...] = ()


@dataclass(frozen=True)
class InsertObservers(Rewrite):
    """Puts observers on activation functions; every output stays what it is.

    - on-fraction, entropy: on what each activation function reads.
    - mean, max, covariance: on what each activation function gives, where a weighted layer comes to read it.
    - contribution: on what each linear layer and convolution reads that comes from an activation function, or from
      a product with one (the gated layers of language models).

    Args:
        stat: see above, and `fxprune.observe`.
        where: glob of the paths of the modules that hold the activations; for contribution, the layers.
        signed: contributions with their signs.
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
                ctx.missed(place.value, "no observer", "it has one", code="observed")
                continue
            size = self._size(place, ctx)
            what = f"{self.stat} of {size} units in {place.path}"
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
        """How many units the value has; None, with a remark, where that is not known."""
        why = ""
        if place.axis is None:
            why = "no axis of it is known to be that of the units of one weighted layer"
        elif not isinstance(size := place.value.meta["val"].shape[place.axis], int):
            why = "the length of its axis differs from run to run"
        elif not place.value.meta["val"].is_floating_point():
            why = "it holds no real numbers"
        else:
            return size
        ctx.missed(place.value, "no observer", why, code="no-axis")
        return None


def _layer_inputs(program: Program, ctx: Context) -> Iterator[_Place]:
    """What weighted layers read that comes from an activation function."""
    ends = {one.node for one in find_activations(program)}
    for node in program.nodes:
        weight = weight_of(node)
        if not weight or not _comes_from(node.all_input_nodes[0], ends):
            continue
        layer = read_layer(node)
        why = _formless(layer)
        if layer is None or why:
            ctx.missed(node, "no observer", why, code="no-form")
            continue
        g = layer.geometry
        window = (g.stride, g.padding, g.dilation) if g.spatial else ()
        axis = layer.source.meta["val"].dim() + layer.axis
        path = weight.rpartition(".")[0]
        told = (layer.weight, *map(list, window))
        yield _Place(layer.source, (node,), path, axis, told)


def _formless(layer: Layer | None) -> str:
    """Why a layer has no contributions; "" where it has."""
    if layer is None or layer.transposed:
        return "contributions are worked out for linear layers and convolutions with plain padding"
    if layer.geometry.inputs == layer.geometry.groups > 1:
        return "each of its outputs reads one input: there is nothing to share"
    return ""


def _comes_from(value: fx.Node, ends: set[fx.Node]) -> bool:
    """Whether a value is that of one of some nodes, handed on; or its product with another one."""
    while value not in ends:
        if operator(value) == "mul":
            return any(_comes_from(n, ends) for n in value.all_input_nodes)
        if operator(value) not in _HANDED_ON and value.op != "call_module":
            return False
        value = value.all_input_nodes[0]
    return True


def _feeds_a_layer(value: fx.Node) -> bool:
    """Whether a weighted layer reads a value, with no other weighted layer in between."""
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
