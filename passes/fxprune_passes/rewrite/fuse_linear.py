"""Makes one layer of several between which nothing but linear happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import fx

from fxprune.editor import Editor
from fxprune.equivalence import compare_functions
from fxprune.operands import get_argument
from fxprune.pipeline import Context, Rewrite
from fxprune.program import Program
from fxprune.structure.paths import operator
from fxprune_passes.rewrite.affine_layer import (
    Geometry,
    Layer,
    channel_axis,
    is_zero,
    layer_bias,
    layer_weight,
    read_layer,
    scale_input,
    scale_output,
    set_bias,
    set_weight,
    shift_objection,
)
from fxprune_passes.rewrite.batch_norm import eval_objection, read_affine, remove_batch_norm
from fxprune_passes.rewrite.compose import (
    chain_bias,
    chain_geometry,
    chain_objection,
    chain_weight,
    sum_geometry,
    sum_objection,
    sum_weight,
)
from fxprune_passes.rewrite.constant_operand import Scaling, read_scaling
from fxprune_passes.rewrite.effects import Memory, Ownership
from fxprune_passes.rewrite.layer_cost import By, LayerCost, operator_of, window_of

Tensor = torch.Tensor


@dataclass(frozen=True)
class FuseLinear(Rewrite):
    """Fuses layers in a row, layers that are summed, and scales and shifts of channels. Exact.

    A row of convolutions or linear layers becomes one; branches of a sum that read the same value (layers,
    eval-mode batch norm, the value itself) become one layer; a constant multiplied or added per channel goes
    into the layer beside it. Where a row is cut is chosen so that the cost of all is least.

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
        fusion = _Fusion(self, ctx.edit(program), ctx, LayerCost(program, self.by))
        while fusion.sweep():
            pass
        for node, what, why, code in fusion.left:
            ctx.missed(node, what, why, code=code)
        after = fusion.editor.finish()
        if fusion.border_changed and after is not program:
            error = compare_functions(program, after).max_relative_error
            what = f"the outputs differ by at most {error:.1e} of the largest"
            ctx.remark("analysis", "border-error", program.name, what, "allow-border was given")
        return after


@dataclass(frozen=True)
class _Term:
    """One operand of a sum as a layer.

    Attributes:
        node: the operand.
        source: what it reads; the operand itself where it is taken as it is.
        geometry: of the layer.
        layer: the call; None for a batch norm and for the value itself.
        weight: `[out, in/g, *k]` in float64.
        bias: `[out]` in float64; None: nothing.
    """

    node: fx.Node
    source: fx.Node
    geometry: Geometry
    layer: Layer | None
    weight: Callable[[], Tensor]
    bias: Tensor | None


@dataclass(frozen=True)
class _Segment:
    """Some layers in a row, as one.

    Attributes:
        layers: in their order.
        geometry: of the one.
        cost: of the one.
        biased: whether it adds something other than zero.
        objection: why it would not be exact.
    """

    layers: tuple[Layer, ...]
    geometry: Geometry
    cost: float
    biased: bool
    objection: str = ""


class _Fusion:
    """One run of the pass: what was refused leave is not asked for again."""

    def __init__(self, options: FuseLinear, editor: Editor, ctx: Context, cost: LayerCost) -> None:
        self.options, self.editor, self.ctx, self.cost = options, editor, ctx, cost
        self.owners, self.memory = Ownership(editor), Memory(editor)
        self.left: list[tuple[fx.Node, str, str, str]] = []
        self.border_changed = False
        self._refused: set[str] = set()

    def sweep(self) -> bool:
        """Tries every candidate once; whether anything was fused."""
        self.left = []
        done = [self._scaling(node) or self._sum(node) for node in self.editor.nodes]
        rows = list(self._rows())
        return any([*done, *(self._row(row) for row in rows)])

    def _allow(self, node: fx.Node, what: str, code: str, why: str = "") -> bool:
        if node.name in self._refused:
            return False
        if self.ctx.allow(node, what, code=code, why=why):
            return True
        self._refused.add(node.name)
        return False

    def _leave(self, node: fx.Node, what: str, why: str, code: str) -> bool:
        self.left.append((node, what, why, code))
        return False

    def _remove(self, node: fx.Node, value: fx.Node) -> None:
        """Lets another value stand for a node, which goes at once: dead readers bar other fusions."""
        self.editor.replace(node, value)
        self.editor.graph.erase_node(node)

    # Scales and shifts

    def _scaling(self, node: fx.Node) -> bool:
        found = read_scaling(self.editor, self.memory, node)
        if found is None or node.name in self._refused:
            return False
        before = read_layer(found.source)
        reader = next(iter(node.users), None)
        after = read_layer(reader) if len(node.users) == 1 else None
        after = after if after is not None and after.source is node else None
        if before is None and after is None:
            return False
        why = self._into(node, before, found, found.source, before=True)
        if why and after is not None:
            why_after = self._into(node, after, found, node, before=False)
            why = why_after and (why if before is not None else why_after)
        if why and node.name not in self._refused:
            self._leave(node, "scale or shift stays", why, "scale")
        return not why

    def _into(
        self, node: fx.Node, layer: Layer | None, found: Scaling, between: fx.Node, *, before: bool
    ) -> str:
        """Folds a scale and shift into a layer; why not, or ""."""
        if layer is None:
            return "no layer is before it"
        if len(between.users) > 1:
            return f"{between.name} has {len(between.users)} readers"
        g = layer.geometry
        parts = found.along(layer.axis, g.outputs if before else g.inputs)
        if parts is None:
            return "it varies along other axes than the channels"
        if not before and (why := shift_objection(layer, parts[1])):
            return why
        if why := self.owners.objection(*layer.tensors):
            return why
        if not self._allow(node, f"folded into {layer.node.name}", "scaled"):
            return "it was not to be done"
        change = scale_output if before else scale_input
        change(self.editor, layer, *parts)
        self._remove(node, found.source)
        return ""

    # Sums

    def _sum(self, node: fx.Node) -> bool:
        terms = self._terms(node)
        if terms is None:
            return False
        a, b = terms
        why = self._sum_objection(node, a, b)
        if why:
            return self._leave(node, "the branches stay apart", why, "sum")
        whole = sum_geometry(a.geometry, b.geometry)
        old = sum(self.cost.of(t.geometry, t.source, node) for t in terms if t.layer is not None)
        new = self.cost.of(whole, a.source, node)
        costs = f"{self.cost.text(new)} in place of {self.cost.text(old)}"
        if self.options.when == "cheaper" and new > old:
            return self._leave(node, "the branches stay apart", f"one would cost {costs}", "cost")
        if not self._allow(node, "the branches of the sum became one layer", "summed", costs):
            return False
        self._make_sum(node, a, b)
        return True

    def _terms(self, node: fx.Node) -> tuple[_Term, _Term] | None:
        """The two operands as layers of one input, one of them a layer at least."""
        if operator(node) not in ("add", "sub") or len(node.args) < 2:
            return None
        a, b = node.args[:2]
        if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a is b:
            return None
        values = [n.meta["val"] for n in (a, b, node)]
        if not all(isinstance(v, torch.Tensor) for v in values):
            return None
        for x in self._readings(a, b):
            for y in self._readings(b, a):
                if x.source is y.source and (x.layer is not None or y.layer is not None):
                    return x, y
        return None

    def _readings(self, node: fx.Node, other: fx.Node) -> Iterator[_Term]:
        """The ways to see an operand as a layer."""
        layer = read_layer(node)
        if layer is not None and not layer.transposed:
            bias = None if layer.bias is None else layer_bias(self.editor, layer)
            yield _Term(
                node,
                layer.source,
                layer.geometry,
                layer,
                lambda: layer_weight(self.editor, layer),
                bias,
            )
        beside = read_layer(other)
        if beside is None or beside.transposed:
            return
        channels, spatial = beside.geometry.outputs, beside.geometry.spatial
        diagonal = _pointwise(channels, spatial)
        if (
            operator(node) == "batch_norm"
            and not eval_objection(node)
            and channel_axis(beside) == 1
        ):
            affine = read_affine(self.editor, node)
            source = get_argument(node, "input")
            scale = _diagonal(affine.scale, spatial)
            yield _Term(node, source, diagonal, None, lambda: scale, affine.shift)
        ones = torch.ones(channels, dtype=torch.float64, device=node.meta["val"].device)
        yield _Term(node, node, diagonal, None, lambda: _diagonal(ones, spatial), None)

    def _sum_objection(self, node: fx.Node, a: _Term, b: _Term) -> str:
        first, second, whole = (n.meta["val"] for n in (a.node, b.node, node))
        if not first.shape == second.shape == whole.shape:
            return "one branch is broadcast over the other"
        if not first.dtype == second.dtype == whole.dtype:
            return "the branches are of different types"
        if (a.geometry.spatial, a.geometry.inputs) != (b.geometry.spatial, b.geometry.inputs):
            return "the branches are layers of different kinds"
        for term in (a, b):
            if term.node is not term.source and len(term.node.users) > 1:
                return f"{term.node.name} has {len(term.node.users)} readers"
        layers = [t.layer for t in (a, b) if t.layer is not None]
        why = self.owners.objection(*(x for layer in layers for x in layer.tensors))
        return why or sum_objection(a.geometry, b.geometry)

    def _make_sum(self, node: fx.Node, a: _Term, b: _Term) -> None:
        sign = float(get_argument(node, "alpha")) * (1 if operator(node) == "add" else -1)
        main = a.layer or b.layer
        assert main is not None
        whole = sum_geometry(a.geometry, b.geometry)
        weight = sum_weight(a.geometry, a.weight(), b.geometry, sign * b.weight())
        biases = [t * s for t, s in ((a.bias, 1.0), (b.bias, sign)) if t is not None]
        set_weight(self.editor, main, weight)
        if biases:
            set_bias(self.editor, main, sum(biases[1:], biases[0]))
        _respell(main.node, main.source, whole)
        self._remove(node, main.node)
        for term in (a, b):
            if operator(term.node) == "batch_norm" and term.node is not term.source:
                remove_batch_norm(self.editor, term.node)
            elif term.node is not main.node and term.node is not term.source:
                self.editor.graph.erase_node(term.node)

    # Rows

    def _rows(self) -> Iterator[tuple[Layer, ...]]:
        """The longest rows of layers where nothing but the next layer reads each one."""
        after: dict[fx.Node, Layer] = {}
        layers = [x for n in self.editor.nodes if (x := read_layer(n)) is not None]
        for layer in layers:
            before = read_layer(layer.source)
            if before is None:
                continue
            if why := self._row_objection(before, layer):
                self._leave(layer.node, f"not fused with {before.node.name}", why, "row")
            else:
                after[before.node] = layer
        inner = {layer.node for layer in after.values()}
        for layer in layers:
            row = [layer]
            while layer.node not in inner and row[-1].node in after:
                row.append(after[row[-1].node])
            if len(row) > 1:
                yield tuple(row)

    def _row_objection(self, first: Layer, second: Layer) -> str:
        if len(first.node.users) > 1:
            return f"{first.node.name} has {len(first.node.users)} readers"
        if first.transposed or second.transposed:
            return "a transposed convolution is not fused"
        if first.geometry.spatial != second.geometry.spatial:
            return "they are layers of different kinds"
        return self.owners.objection(*first.tensors, *second.tensors)

    def _row(self, row: tuple[Layer, ...]) -> bool:
        """Fuses the parts of a row that together cost least."""
        parts = self._best(row)
        for one, two in pairwise(parts):
            self._leave(
                two.layers[0].node,
                f"not fused with {one.layers[-1].node.name}",
                *self._reason(one, two),
            )
        fused = [self._fuse(part) for part in parts if len(part.layers) > 1]
        return any(fused)

    def _best(self, row: tuple[Layer, ...]) -> list[_Segment]:
        """The row cut into parts: of least cost and then fewest parts; `when=always`: fewest parts first."""
        best: list[tuple[tuple[float, float], list[_Segment]]] = [((0.0, 0.0), [])]
        for end in range(1, len(row) + 1):
            found = []
            for start in range(end):
                part = self._segment(row[start:end])
                if part.objection and not self.options.allow_border:
                    continue
                parts = [*best[start][1], part]
                key = (sum(p.cost for p in parts), float(len(parts)))
                found.append((key if self.options.when == "cheaper" else key[::-1], parts))
            best.append(min(found, key=lambda one: one[0]))
        return best[-1][1]

    def _segment(self, layers: tuple[Layer, ...]) -> _Segment:
        first, *rest = layers
        geometry, biased, objection = first.geometry, self._is_biased(first), ""
        for layer in rest:
            objection = objection or chain_objection(geometry, layer.geometry, biased)
            geometry = chain_geometry(geometry, layer.geometry)
            biased = biased or self._is_biased(layer)
        cost = self.cost.of(geometry, first.source, layers[-1].node)
        return _Segment(layers, geometry, cost, biased, objection)

    def _is_biased(self, layer: Layer) -> bool:
        return layer.bias is not None and not is_zero(layer_bias(self.editor, layer))

    def _reason(self, one: _Segment, two: _Segment) -> tuple[str, str]:
        """Why two parts of a row stay apart, and the code of that."""
        whole = self._segment((*one.layers, *two.layers))
        if whole.objection and not self.options.allow_border:
            return whole.objection, "border"
        costs = self.cost.text(whole.cost), self.cost.text(one.cost + two.cost)
        return f"one layer would cost {costs[0]} in place of {costs[1]}", "cost"

    def _fuse(self, part: _Segment) -> bool:
        first, *rest = part.layers
        last = rest[-1]
        names = ", ".join(layer.node.name for layer in part.layers[:-1])
        old = sum(self._segment((layer,)).cost for layer in part.layers)
        costs = f"{self.cost.text(part.cost)} in place of {self.cost.text(old)}"
        if not self._allow(last.node, f"fused with {names}", "fused", costs):
            return False
        self.border_changed = self.border_changed or bool(part.objection)
        geometry, weight = first.geometry, layer_weight(self.editor, first)
        bias = layer_bias(self.editor, first)
        for layer in rest:
            w2, b2 = layer_weight(self.editor, layer), layer_bias(self.editor, layer)
            bias = chain_bias(layer.geometry, w2, bias, b2)
            weight = chain_weight(geometry, weight, layer.geometry, w2)
            geometry = chain_geometry(geometry, layer.geometry)
        set_weight(self.editor, last, weight)
        if any(layer.bias is not None for layer in part.layers):
            set_bias(self.editor, last, bias)
        _respell(last.node, first.source, geometry)
        for layer in reversed(part.layers[:-1]):
            self.editor.graph.erase_node(layer.node)
        return True


def _respell(node: fx.Node, source: fx.Node, geometry: Geometry) -> None:
    """Lets a layer's node call the layer of another geometry, with the weight and bias it names."""
    weight, bias = get_argument(node, "weight"), get_argument(node, "bias")
    node.target = operator_of(geometry)
    node.args, node.kwargs = (source, weight, bias, *window_of(geometry)), {}


def _pointwise(channels: int, spatial: int) -> Geometry:
    """A depthwise layer of one tap."""
    one, none = (1,) * spatial, (0,) * spatial
    return Geometry(channels, channels, channels, one, one, none, one)


def _diagonal(values: Tensor, spatial: int) -> Tensor:
    """`[channels, 1, ...]`: the weight of a depthwise layer of one tap."""
    return values.reshape(-1, 1, *(1,) * spatial)
