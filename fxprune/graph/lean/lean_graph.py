"""Makes the lean form of a graph with gates, and decides in each call whether it runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from operator import getitem
from typing import Any

import torch
from torch import fx, nn

from fxprune.graph.gate import Gate, arguments
from fxprune.graph.leaf import leaf_of
from fxprune.graph.lean.branches import Branches, closable
from fxprune.graph.lean.folds import fold_gate
from fxprune.graph.lean.multipliers import read_gates
from fxprune.torch_private import has_hooks, in_autocast, is_watched

Forward = Callable[..., Any]


def run_lean(plain: Forward) -> Forward:
    """Returns a forward that runs the lean form of a graph module in place of the forward of its graph.

    The graph itself runs where calls are recorded or transformed, compiled or cast, and where a gate has hooks.
    The lean form is made in the first call that uses it.
    """
    known: list[Forward | None] = []

    @wraps(plain)
    def forward(module: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or is_watched((args, kwargs)) or in_autocast():
            return plain(module, *args, **kwargs)
        if not known:
            known.append(lean(module))
        if known[0] is None or any(has_hooks(m) for m in module.modules() if isinstance(m, Gate)):
            return plain(module, *args, **kwargs)
        return known[0](module, *args, **kwargs)

    return forward


def lean(module: fx.GraphModule) -> Forward | None:
    """Returns a function of a graph module and its inputs that computes what its forward computes, with less.

    - Every gate is drawn and read once, at the beginning.
    - The gate of a branch goes into scale and shift of its last batch norm, or the rows of its last layer.
    - Gates of units go into the columns of the layers that sum over them, while these have fewer numbers than the map.
    - A branch does not run if the gate that it ends at is closed and no slope of that gate is asked for: the sum is
      the shortcut, its parameters get gradients of 0, and its batch norms see no batch.

    Returns:
        The function; None for a graph without gates, or where a gate draws a sample at several of its places.
    """
    called = [n for n in module.graph.nodes if isinstance(leaf_of(module, n), Gate)]
    drawn = [str(n.target) for n in called if arguments(n)["draw"]]
    if not called or len(set(drawn)) < len(drawn):
        return None
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    output = graph.graph_copy(module.graph, copies)
    graph.output(output)
    graph.set_codegen(module.graph._codegen)
    _write(graph, [copies[n] for n in called])
    graph.lint()
    shell = fx.GraphModule(nn.Module(), fx.Graph())
    shell.graph = graph
    forward: Forward = type(shell).forward
    return forward


def _write(graph: fx.Graph, called: list[fx.Node]) -> None:
    """Replaces the calls of gates in a graph."""
    multipliers = _read(graph, called)
    ends: list[tuple[fx.Node, int, fx.Node]] = []
    for gate in called:
        multiplier = multipliers[str(gate.target)]
        if (end := closable(gate)) is not None:
            ends.append((*end, multiplier))
        fold_gate(gate, multiplier)
    branches = Branches(graph, multipliers.values())
    for add, other, multiplier in ends:
        branches.take_out(add, other, multiplier)


def _read(graph: fx.Graph, called: list[fx.Node]) -> dict[str, fx.Node]:
    """Inserts the nodes that read the multiplier of each gate, by its path, in the order in which they draw."""
    paths = list(dict.fromkeys(str(n.target) for n in called))
    draw = [any(arguments(n)["draw"] for n in called if n.target == path) for path in paths]
    first = next(n for n in graph.nodes if n.op != "placeholder")
    with graph.inserting_before(first):
        gates = [graph.create_node("get_attr", path) for path in paths]
        read = graph.call_function(read_gates, (draw, *gates))
        return {p: graph.call_function(getitem, (read, i)) for i, p in enumerate(paths)}
