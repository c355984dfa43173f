"""Computes for every node of a gated network which gates must be open for the node to be needed.

A node is needed if its value reaches an output, or a write that outlives the run, without a factor of 0
on the way. A closed gate is 0, and so are sums of zeros, products with a zero, and everything that maps
zeros to zeros. A layer whose input is 0 returns its bias: neither its weight nor its products are needed.
Values computed from such constants alone do not vary: a layer computes them once for all samples and
positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from fxprune.graph.evaluate import is_mutable
from fxprune.graph.gate import Gate
from fxprune.graph.leaf import leaf_of
from fxprune.graph.program import Program
from fxprune.structure.formula import ALWAYS, NEVER, Formula, both, either, gate
from fxprune.structure.paths import Flow
from fxprune.structure.zeros import KEEP_ZERO, PRODUCTS, bias_of, is_norm, leaves_bias, operation


@dataclass(frozen=True, eq=False)
class Need:
    """The conditions under which nodes and parameters are needed.

    Attributes:
        products: by node, when its multiply-accumulates are needed for all samples and positions.
        once: by linear layer or convolution whose input may be constant, when its products are needed for a
            single position.
        tensors: by name, when a parameter or buffer is needed by any of its readers; tensors that are never
            read are missing.
    """

    products: Mapping[fx.Node, Formula]
    once: Mapping[fx.Node, Formula]
    tensors: Mapping[str, Formula]


def find_need(program: Program, numbers: Mapping[str, int]) -> Need:
    """Computes the formulas of a program, in time linear in nodes and edges except for the lengths of formulas.

    Args:
        program: a program with gates.
        numbers: the numbers of the gates, by path; other gates count as open.
    """
    flow = Flow.of(program)
    nonzero = _nonzero(program, flow, numbers)
    given = {n: _first(n, nonzero) for n in flow.order if leaves_bias(n)}
    needed: dict[fx.Node, Formula] = {}
    for node in reversed(flow.order):
        readers = flow.readers[node]
        ends = node.op == "output" or not readers or is_mutable(node)
        asked = ALWAYS if ends else either(_asks(r, node, needed, given) for r in readers)
        needed[node] = both(asked, nonzero[node])
    varying = _varying(flow, nonzero)
    once = {n: both(needed[n], f) for n, f in given.items() if not is_norm(n)}
    products = {
        n: both(f, _first(n, varying)) if n in once else f for n, f in {**needed, **once}.items()
    }
    once = {n: f for n, f in once.items() if f != products[n]}
    return Need(products, once, _tensors(program, needed))


def _asks(
    reader: fx.Node,
    node: fx.Node,
    needed: Mapping[fx.Node, Formula],
    given: Mapping[fx.Node, Formula],
) -> Formula:
    """Returns when a reader needs the value of a node."""
    if reader in given and node is not bias_of(reader):
        return both(needed[reader], given[reader])
    return needed[reader]


def _nonzero(program: Program, flow: Flow, numbers: Mapping[str, int]) -> dict[fx.Node, Formula]:
    """Returns for every node when it is not known to be 0."""
    found: dict[fx.Node, Formula] = {}
    for node in flow.order:
        leaf = leaf_of(program.module, node)
        if leaf is None:
            found[node] = _of_operator(node, found)
        else:
            number = numbers.get(str(node.target)) if isinstance(leaf, Gate) else None
            opened = ALWAYS if number is None else gate(number)
            found[node] = both(_first(node, found), opened)
    return found


def _varying(flow: Flow, nonzero: Mapping[fx.Node, Formula]) -> dict[fx.Node, Formula]:
    """Returns for every node when it may differ between samples or positions."""
    found: dict[fx.Node, Formula] = {}
    for node in flow.order:
        if node.op == "placeholder" or not flow.inputs[node]:
            found[node] = ALWAYS if node in flow.varying else NEVER
        else:
            found[node] = both(either(found[n] for n in flow.inputs[node]), nonzero[node])
    return found


def _of_operator(node: fx.Node, known: Mapping[fx.Node, Formula]) -> Formula:
    name = operation(node)
    if name in ("cat", "stack", "add", "sub"):
        parts = node.args[0] if name in ("cat", "stack") else node.args[:2]
        return either(_value(p, known) for p in parts)  # type: ignore[union-attr]
    if name == "scaled_dot_product_attention":
        return _value(node.args[2], known)
    if name in PRODUCTS:
        return both(*(_value(a, known) for a in node.args[:2]))
    if name in KEEP_ZERO or (leaves_bias(node) and bias_of(node) is None):
        return _first(node, known)
    return ALWAYS


def _first(node: fx.Node, known: Mapping[fx.Node, Formula]) -> Formula:
    return _value(node.args[0], known)


def _value(argument: object, known: Mapping[fx.Node, Formula]) -> Formula:
    return known.get(argument, ALWAYS) if isinstance(argument, fx.Node) else ALWAYS


def _tensors(program: Program, needed: Mapping[fx.Node, Formula]) -> dict[str, Formula]:
    """Returns the conditions by every name of a tensor; a shared tensor is needed if any of its readers needs it."""
    stored = program.tensors()
    readers: dict[int, list[Formula]] = {}
    for node, formula in needed.items():
        if node.op == "get_attr" and (tensor := stored.get(str(node.target))) is not None:
            readers.setdefault(id(tensor), []).append(formula)
    return {n: either(readers[id(t)]) for n, t in stored.items() if id(t) in readers}
