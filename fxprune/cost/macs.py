"""Multiply-accumulates (MACs) of products and convolutions: half the count of `torch.utils.flop_counter`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from fxprune.analysis.axes import Axes
from fxprune.cost.terms import Term
from fxprune.graph.evaluate import flat_inputs
from fxprune.graph.operands import bind, is_operator
from fxprune.graph.program import Program
from fxprune.graph.sizes import Sizes, symbolic_axes


@dataclass(frozen=True)
class Extent:
    """The length of one axis of a node's output."""

    node: fx.Node
    axis: int


Product = list[Extent]
Formula = Callable[[fx.Node, list[Any]], list[Product]]


def mac_terms(program: Program, axes: Axes) -> list[Term]:
    """Returns the MACs as terms over labels, at the example's batch size; an attention call has two terms."""
    sizes = example_sizes(program)
    terms: list[Term] = []
    for node, product in _all_products(program):
        extents = ((_size(sizes, e), axes.final(axes.nodes[e.node][e.axis])) for e in product)
        terms.append(Term.of(node.name, 1, extents))
    return terms


def node_macs(program: Program) -> dict[fx.Node, int]:
    """Returns the MACs of each node that has any, at the example's batch size."""
    sizes = example_sizes(program)
    found: dict[fx.Node, int] = {}
    for node, product in _all_products(program):
        found[node] = found.get(node, 0) + prod(_size(sizes, e) for e in product)
    return found


def example_sizes(program: Program) -> Sizes:
    """Returns the numbers for a program's symbolic lengths that its example inputs imply."""
    return Sizes.of_symbols(example_symbols(program))


def example_symbols(program: Program) -> dict[Any, int]:
    """Returns the value of each symbol in the lengths of the example inputs."""
    flat = flat_inputs(program.module, program.args, program.kwargs)
    known: dict[Any, int] = {}
    for node, value in zip(program.graph.find_nodes(op="placeholder"), flat, strict=True):
        fake = node.meta.get("val")
        if isinstance(fake, torch.Tensor) and isinstance(value, torch.Tensor):
            for axis in symbolic_axes(fake):
                known.setdefault(fake.shape[axis].node.expr, value.shape[axis])  # type: ignore[attr-defined]
    return _by_symbol(known)


def _by_symbol(known: dict[Any, int]) -> dict[Any, int]:
    """Returns the values of single symbols; from the value of a length `4*s`, that of `s` is derived."""
    values = {e: n for e, n in known.items() if e.is_Symbol}
    for expression, number in known.items():
        free = list(expression.free_symbols - set(values))
        if len(free) == 1:
            rest = expression.xreplace(values)
            step = int(rest.xreplace({free[0]: 1}) - rest.xreplace({free[0]: 0}))
            values[free[0]] = (number - int(rest.xreplace({free[0]: 0}))) // (step or 1)
    return values


def _size(sizes: Sizes, extent: Extent) -> int:
    return sizes.number(extent.node.meta["val"].shape[extent.axis])


def _all_products(program: Program) -> Iterator[tuple[fx.Node, Product]]:
    for node in program.nodes:
        formula = _FORMULAS.get(_name(node))
        if formula is not None:
            for product in formula(node, bind(node)[0]):
                yield node, product


def _name(node: fx.Node) -> str:
    return str(node.target._schema.name) if is_operator(node) else ""  # type: ignore[union-attr]


def _extents(node: fx.Node, first: int = 0, last: int | None = None) -> Product:
    """Returns the axes `first` up to `last` of a node's output."""
    return [Extent(node, i) for i in range(node.meta["val"].ndim)[first:last]]


def _contraction(node: fx.Node, args: list[Any]) -> list[Product]:
    """Every element of the output is a sum along the last axis of the first operand."""
    return [_extents(node) + _extents(args[0], -1)]


def _added_contraction(node: fx.Node, args: list[Any]) -> list[Product]:
    return _contraction(node, args[1:])


def _addbmm(node: fx.Node, args: list[Any]) -> list[Product]:
    """`[b, n, k] @ [b, k, m]`, summed over b."""
    return [_extents(node) + _extents(args[1], 0, 1) + _extents(args[1], -1)]


def _outer(node: fx.Node, _args: list[Any]) -> list[Product]:
    return [_extents(node)]


def _bilinear(node: fx.Node, args: list[Any]) -> list[Product]:
    return [_extents(node) + _extents(args[0], -1) + _extents(args[1], -1)]


def _convolution(node: fx.Node, args: list[Any]) -> list[Product]:
    """Each output sums over the weight `[.., in/groups, *k]`; transposed, each input feeds `[.., out/groups, *k]`."""
    transposed = "transpose" in _name(node) or (len(args) > 6 and args[6] is True)
    return [_extents(args[0] if transposed else node) + _extents(args[1], 1)]


def _attention(node: fx.Node, args: list[Any]) -> list[Product]:
    """The products `q @ k` and `weights @ v`: `[b, h, t, s]` elements each, times d and times e."""
    q, k, v = args[:3]
    pairs = _extents(node, 0, -1) + _extents(k, -2, -1)
    return [pairs + _extents(q, -1), pairs + _extents(v, -1)]


def _grouped(node: fx.Node, args: list[Any]) -> list[Product]:
    """The experts share rows, columns or the sum among them; none of these is repeated for each expert."""
    a, b = args[:2]
    shared_sum = a.meta["val"].ndim == 2 and b.meta["val"].ndim == 2
    return [_extents(node, 1 if shared_sum else 0) + _extents(a, -1)]


def _recurrent(_node: fx.Node, args: list[Any]) -> list[Product]:
    """Every weight matrix of every layer and direction, at every time step."""
    weights = next(a for a in args[2:] if isinstance(a, list | tuple))
    steps = _extents(args[0], 0, -1)
    return [steps + _extents(w) for w in weights if w.meta["val"].ndim == 2]


def _hidden_first(_node: fx.Node, args: list[Any]) -> list[Product]:
    """A single time step: `[b, in]` times both weights."""
    return [_extents(args[0], 0, -1) + _extents(w) for w in args[2:4]]


_CONVOLUTIONS = (
    "convolution",
    "_convolution",
    *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3)),
)
_FORMULAS: dict[str, Formula] = {
    **{
        f"aten::{n}": _contraction
        for n in ("mm", "bmm", "matmul", "linear", "mv", "dot", "vdot", "inner")
    },
    **{f"aten::{n}": _added_contraction for n in ("addmm", "baddbmm", "addmv")},
    **{f"aten::{n}": _convolution for n in _CONVOLUTIONS},
    **{f"aten::{n}": _outer for n in ("outer", "ger")},
    **{f"aten::{n}": _recurrent for n in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **{f"aten::{n}_cell": _hidden_first for n in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "aten::addbmm": _addbmm,
    "aten::bilinear": _bilinear,
    "aten::scaled_dot_product_attention": _attention,
    "aten::_grouped_mm": _grouped,
}
