"""Writes the graph that two runs of a network at two batch sizes have in common."""

from __future__ import annotations

import linecache
import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx

from fxprune.capture.network import Network
from fxprune.capture.record import Call, Record, Ref, Sizes, UnsupportedError


class _Times(NamedTuple):
    """A multiple of the batch size."""

    factor: int


class _Merge:
    """Merges values of runs at two batch sizes."""

    def __init__(self, *batches: int) -> None:
        self._one, self._two = batches

    def __call__(self, one: Any, two: Any) -> Any:
        """Returns the common value; a number that is the same multiple of both batch sizes becomes `_Times`.

        Raises:
            UnsupportedError: the values differ.
        """
        if type(one) is not type(two):
            raise UnsupportedError("a value has different types at different batch sizes")
        if isinstance(one, dict):
            return dict(zip(one, self._each([*one.values()], [*two.values()]), strict=True))
        if type(one) in (list, tuple):
            return type(one)(self._each(one, two))
        return one if one == two else self._number(one, two)

    def _each(self, one: Any, two: Any) -> list[Any]:
        if len(one) != len(two):
            raise UnsupportedError("the number of values differs between batch sizes")
        return [self(a, b) for a, b in zip(one, two, strict=True)]

    def _number(self, one: Any, two: Any) -> _Times:
        factor = one // self._one if type(one) is int else 0
        if (factor * self._one, factor * self._two) != (one, two):
            raise UnsupportedError(f"a value is {one} at one batch size and {two} at another")
        return _Times(factor)


def write_graph(
    network: Network, names: list[str], batched: list[int], runs: Mapping[int, Record]
) -> fx.Graph:
    """Writes the calls that two runs of a network have in common as a graph with a free batch size.

    Args:
        network: the network.
        names: the names of its inputs.
        batched: the numbers of the inputs that have a batch axis.
        runs: the recorded calls, by batch size.

    Raises:
        UnsupportedError: the runs differ in more than their batch size.
    """
    one, two = runs.values()
    writer = _Writer(network, runs)
    writer.add_sources(names, batched, one.named_constants())
    if not one.has_constants_of(two):
        raise UnsupportedError("the constants differ between batch sizes")
    if len(one.calls) != len(two.calls):
        raise UnsupportedError("the number of calls differs between batch sizes")
    for number, calls in enumerate(zip(one.calls, two.calls, strict=True)):
        writer.add_call(number, *calls)
    if (one.outputs, one.out_spec) != (two.outputs, two.out_spec):
        raise UnsupportedError("the outputs differ between batch sizes")
    writer.add_outputs(one.outputs)
    return writer.graph


class _Writer:
    def __init__(self, network: Network, batches: Iterable[int]) -> None:
        self.graph = fx.Graph()
        self._network, self._free = network, network.free
        self._merge = _Merge(*batches)
        self._nodes: dict[Ref, fx.Node] = {}
        self._numbers: dict[int, fx.Node] = {}
        self._meta: dict[str, Any] = {}

    def add_sources(
        self, names: list[str], batched: list[int], constants: Mapping[str, torch.Tensor]
    ) -> None:
        """Adds parameters, buffers, constants and inputs, and the batch size."""
        free, inputs = self._free, self._network.inputs
        for name, value in self._network.state.items():
            self._add_source(self.graph.get_attr(name), value)
        lifted = [self.graph.get_attr(name) for name in constants]
        nodes = [self.graph.placeholder(name) for name in names]
        for i, (node, x) in enumerate(zip(nodes, inputs, strict=True)):
            self._add_source(
                node, free.free(x, names[i]) if i in batched else self._network.fixed(x)
            )
        for node, x in zip(lifted, constants.values(), strict=True):
            self._add_source(node, self._network.fixed(x))
        batch = self.graph.call_function(torch.ops.aten.sym_size.int, (nodes[batched[0]], 0))
        batch.meta["val"] = free.times(1)
        self._numbers[1] = batch

    def add_outputs(self, outputs: list[Ref | None]) -> None:
        """Adds the network's outputs as a flat list."""
        self.graph.output(tuple(None if r is None else self._nodes[r] for r in outputs))

    def add_call(self, number: int, one: Call, two: Call) -> None:
        """Adds a call of an operator."""
        if one.op is not two.op:
            raise UnsupportedError("the operators differ between batch sizes")
        self._meta = {"nn_module_stack": one.modules}
        if one.frames:
            self._meta["stack_trace"] = _stack_trace(one.frames)
        args, kwargs = self._nodes_in(self._merge((one.args, one.kwargs), (two.args, two.kwargs)))
        name = one.op.overloadpacket.__name__
        node = self.graph.create_node("call_function", one.op, args, kwargs, name)
        values = [self._value(x) for x in self._merge(one.made, two.made)]
        node.meta.update(self._meta, val=one.container(values) if one.container else values[0])
        if one.container is None:
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

    def _value(self, sizes: Sizes) -> torch.Tensor:
        shape, stride = (
            [self._free.times(n.factor) if isinstance(n, _Times) else n for n in numbers]
            for numbers in sizes[:2]
        )
        return self._free.tensor(shape, stride, *sizes[2:])

    def _nodes_in(self, x: Any) -> Any:
        if isinstance(x, Ref):
            return self._nodes[x]
        if isinstance(x, _Times):
            return self._number(x.factor)
        if isinstance(x, dict):
            return {key: self._nodes_in(value) for key, value in x.items()}
        return type(x)(map(self._nodes_in, x)) if type(x) in (list, tuple) else x

    def _number(self, factor: int) -> fx.Node:
        if factor not in self._numbers:
            node = self.graph.call_function(operator.mul, (self._numbers[1], factor))
            node.meta.update(self._meta, val=self._free.times(factor))
            self._numbers[factor] = node
        return self._numbers[factor]


def _stack_trace(frames: tuple[tuple[str, int], ...]) -> str:
    """Returns source lines in the form in which Python prints them."""
    lines = [
        f'File "{file}", line {line}, in forward\n    {linecache.getline(file, line).strip()}'
        for file, line in frames
    ]
    return "\n  ".join(lines)
