"""Writes the graph that two runs of a network at different sizes have in common."""

from __future__ import annotations

import linecache
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxprune.capture.formula import Formula
from fxprune.capture.network import Network
from fxprune.capture.record import Call, Record, Ref
from fxprune.capture.search import Found
from fxprune.capture.second import Merged


def write_graph(network: Network, names: list[str], first: Record, found: Found) -> fx.Graph:
    """Writes the calls of a network as a graph with free sizes.

    Args:
        network: the network.
        names: the names of its inputs.
        first: the recorded calls at the example's sizes.
        found: what they have in common with those at other sizes.
    """
    writer = _Writer(network, found)
    writer.add_sources(names, first.named_constants())
    for number, (call, merged) in enumerate(zip(first.calls, found.calls, strict=True)):
        writer.add_call(number, call, merged)
    writer.add_outputs(first.outputs)
    return writer.graph


class _Writer:
    def __init__(self, network: Network, found: Found) -> None:
        self.graph = fx.Graph()
        self._network, self._free, self._found = network, network.free, found
        self._nodes: dict[Ref, fx.Node] = {}
        self._numbers: dict[tuple[Any, ...], fx.Node] = {}
        self._meta: dict[str, Any] = {}

    def add_sources(self, names: list[str], constants: Mapping[str, torch.Tensor]) -> None:
        """Adds parameters, buffers, constants and inputs, and the free sizes."""
        inputs = self._network.inputs
        for name, value in self._network.state.items():
            self._add_source(self.graph.get_attr(name), value)
        lifted = [self.graph.get_attr(name) for name in constants]
        nodes = [self.graph.placeholder(name) for name in names]
        for i, (node, x) in enumerate(zip(nodes, inputs, strict=True)):
            self._add_source(node, self._input(i, x))
        for node, x in zip(lifted, constants.values(), strict=True):
            self._add_source(node, self._network.fixed(x))
        for size in self._found.sizes:
            i, axis = size.axes[0]
            formula = self._found.formulas[i, axis]
            node = self.graph.call_function(torch.ops.aten.sym_size.int, (nodes[i], axis))
            node.meta["val"] = self._value(formula)
            self._numbers[formula.values] = node

    def _input(self, number: int, x: Any) -> Any:
        formulas = self._found.formulas
        axes = {j: f for (i, j), f in formulas.items() if i == number}
        if not axes:
            return self._network.fixed(x)
        return self._free.resized(x, {j: self._value(f) for j, f in axes.items()})

    def add_outputs(self, outputs: list[Ref | None]) -> None:
        """Adds the network's outputs as a flat list."""
        self.graph.output(tuple(None if r is None else self._nodes[r] for r in outputs))

    def add_call(self, number: int, call: Call, merged: Merged) -> None:
        """Adds a call of an operator."""
        self._meta = {"nn_module_stack": call.modules}
        if call.frames:
            self._meta["stack_trace"] = _stack_trace(call.frames)
        args, kwargs = self._nodes_in(merged.args), self._nodes_in(merged.kwargs)
        name = merged.op.overloadpacket.__name__
        node = self.graph.create_node("call_function", merged.op, args, kwargs, name)
        values = [
            self._free.tensor(self._values(shape), self._values(stride), *made[2:])
            for (shape, stride), made in zip(merged.made, call.made, strict=True)
        ]
        node.meta.update(self._meta, val=call.container(values) if call.container else values[0])
        if call.container is None:
            self._nodes[Ref(number)] = node
            return
        for i, value in enumerate(values):
            self._nodes[Ref(number, i)] = item = self.graph.call_function(
                operator.getitem, (node, i)
            )
            item.meta.update(self._meta, val=value)

    def _add_source(self, node: fx.Node, value: Any) -> None:
        node.meta["val"] = value
        self._nodes[Ref(-1 - len(self._nodes))] = node

    def _value(self, x: Any) -> Any:
        return self._free.number(x.expression, x.values[0]) if isinstance(x, Formula) else x

    def _values(self, numbers: tuple[Any, ...]) -> list[Any]:
        return [self._value(n) for n in numbers]

    def _nodes_in(self, x: Any) -> Any:
        if isinstance(x, Ref):
            return self._nodes[x]
        if isinstance(x, Formula):
            return self._number(x)
        if isinstance(x, dict):
            return {key: self._nodes_in(value) for key, value in x.items()}
        return type(x)(map(self._nodes_in, x)) if type(x) in (list, tuple) else x

    def _number(self, x: Formula) -> fx.Node:
        """The node that computes a formula, near where it is first used."""
        if x.values not in self._numbers:
            operands = tuple(self._nodes_in(y) for y in x.operands)
            node = self.graph.call_function(x.function, operands)  # type: ignore[arg-type]
            node.meta.update(self._meta, val=self._value(x))
            self._numbers[x.values] = node
        return self._numbers[x.values]


def _stack_trace(frames: tuple[tuple[str, int], ...]) -> str:
    """Returns source lines in the form in which Python prints them."""
    lines = [
        f'File "{file}", line {line}, in forward\n    {linecache.getline(file, line).strip()}'
        for file, line in frames
    ]
    return "\n  ".join(lines)
