"""A graph with a free batch from two runs of a network at two batches.

Most of an export's time goes into symbolic sizes and proxies. Here the network runs twice on tensors of
known sizes, without data, and a number that is the same multiple of both batches is written with the
batch. Whatever this does not cover raises UnsupportedError; the caller then exports.
"""

from __future__ import annotations

import inspect
import linecache
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fxprune.capture.record import Call, Record, Ref, Sizes, UnsupportedError, record
from fxprune.torch_private import FreeBatch, input_codegen

_MOST_BATCHED = 4  # inputs with a batch; the ways to divide them are tried
_FURTHER = 101  # a prime: no remainder by a smaller number is the same at both batches
_TENSORS = {torch.Tensor, nn.Parameter, nn.Buffer}
_NUMBERS = (int, float, bool, str)


class Traced(NamedTuple):
    """A graph whose get_attr nodes name tensors of the network, and how its outputs are nested."""

    graph: fx.Graph
    out_spec: pytree.TreeSpec


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    watch: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Traced:
    """The graph that `torch.export` makes of a network with a free batch.

    A full slice of the batch, which export writes and which is its input, is not in it.

    Args:
        model: the network.
        args: positional example inputs.
        kwargs: keyword example inputs.
        watch: entered around the first run.

    Raises:
        UnsupportedError: the network does what this does not cover.
    """
    names = _input_names(model, args, kwargs)
    inputs = [*args, *kwargs.values()]
    batched = _batched(inputs)
    one = len(inputs[batched[0]])
    further = one + _FURTHER
    at_one = dict.fromkeys(batched, one)
    network = _Network(model, inputs, list(kwargs))
    with watch():
        first = network.run(at_one, autograd=True)
    for part in _parts(batched):
        _check_one_batch(network, first, {**at_one, **dict.fromkeys(part, further)})
    sizes = (one, further)
    at_further = dict.fromkeys(batched, further)
    try:
        second = network.run(at_further)
        graph = _build(network, (first, second), sizes, names, batched)
    except (
        UnsupportedError
    ):  # some kernels of attention lay out otherwise where there are gradients
        second = network.run(at_further, autograd=True)
        graph = _build(network, (first, second), sizes, names, batched)
    _, in_spec = pytree.tree_flatten((args, dict(kwargs)))
    graph.set_codegen(input_codegen(names, in_spec, first.out_spec))
    return Traced(graph, first.out_spec)


def _build(
    network: _Network,
    runs: tuple[Record, Record],
    sizes: tuple[int, int],
    names: list[str],
    batched: list[int],
) -> fx.Graph:
    builder = _Builder(network, runs, sizes)
    builder.add_inputs(names, network.inputs, batched)
    builder.add_calls()
    return builder.graph


def _input_names(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """The names in `forward` of the inputs, every one a tensor of its own."""
    inputs = [*args, *kwargs.values()]
    if any(type(x) is not torch.Tensor for x in inputs) or len(set(map(id, inputs))) < len(inputs):
        raise UnsupportedError("inputs that are no plain tensors, or one of them twice")
    known = inspect.signature(model.forward).parameters.values()
    plain = [p.name for p in known if p.kind is p.POSITIONAL_OR_KEYWORD]
    names = [*plain[: len(args)], *kwargs]
    if len(names) < len(inputs) or not set(names) <= set(plain):
        raise UnsupportedError("inputs without a name of their own")
    return names


def _batched(inputs: list[torch.Tensor]) -> list[int]:
    """Numbers of the inputs whose axis 0 is as long as that of the first one."""
    axes = [i for i, x in enumerate(inputs) if x.ndim]
    found = [i for i in axes if len(inputs[i]) == len(inputs[axes[0]])]
    if not 0 < len(found) <= _MOST_BATCHED or len(inputs[found[0]]) < 2:
        raise UnsupportedError("no batch, or too many")
    if not all(inputs[i].is_contiguous() for i in found):
        raise UnsupportedError("a batch in strides of its own")
    return found


def _parts(numbers: list[int]) -> Iterator[tuple[int, ...]]:
    """Each way to divide them in two, by the part that is without the first."""
    rest = numbers[1:]
    for size in range(1, len(numbers)):
        yield from combinations(rest, size)


def _check_one_batch(network: _Network, first: Record, batches: Mapping[int, int]) -> None:
    """Raises where inputs of unlike batches give other numbers than the first run; most networks fail on them."""
    try:
        found = network.run(batches)
    except UnsupportedError:
        raise
    except Exception:
        return
    if [c[:3] for c in found.calls] != [c[:3] for c in first.calls]:
        raise UnsupportedError("inputs with batches of their own")


class _Network:
    """A network and its inputs, whose tensors have no data."""

    def __init__(self, model: nn.Module, inputs: list[torch.Tensor], keywords: list[str]) -> None:
        modules = list(model.named_modules(remove_duplicate=False))
        self.free = FreeBatch()
        self._model, self.inputs, self._keywords = model, inputs, keywords
        self._paths = {m: path for path, m in modules}
        kinds = (fx.GraphModule, torch.jit.ScriptModule)
        if len(self._paths) < len(modules) or any(isinstance(m, kinds) for m in self._paths):
            raise UnsupportedError("shared modules, or graphs")
        self.state = {name: self.free.static(x) for name, x in _tensors(model).items()}

    def run(self, batches: Mapping[int, int], *, autograd: bool = False) -> Record:
        """What the network calls, the inputs of these numbers at these batches.

        It must leave its attributes alone.
        """
        given = [
            self.free.resized(x, batches[i]) if i in batches else self.free.static(x)
            for i, x in enumerate(self.inputs)
        ]
        before = [(d, dict(d)) for d in self._attributes()]
        state, count = dict(self.state), len(given) - len(self._keywords)
        kwargs = dict(zip(self._keywords, given[count:], strict=True))

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def call() -> Any:
            return functional_call(self._model, state, tuple(given[:count]), kwargs)

        try:
            with self.free.mode:
                sources = [*self.state.values(), *given]
                return record(call, sources, self._paths, autograd=autograd)
        finally:
            now = [(d, dict(d)) for d in self._attributes()]
            if not _same_attributes([*before, (self.state, self.state)], [*now, (state, state)]):
                raise UnsupportedError("an attribute or a buffer is replaced")

    def _attributes(self) -> Iterator[dict[str, Any]]:
        for module in self._paths:
            yield vars(module)
            yield from (v for v in vars(module).values() if isinstance(v, dict))


def _same_attributes(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(
        old.keys() == new.keys() and all(_same(v, new[k]) for k, v in old.items())
        for (_, old), (_, new) in zip(before, now, strict=True)
    )


def _same(old: Any, new: Any) -> bool:
    return old is new or (type(old) is type(new) and isinstance(old, _NUMBERS) and old == new)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, each by its last name, as torch.export; functional_call knows its others."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    last = {id(x): name for name, x in named}
    if not {type(x) for _, x in named} <= _TENSORS:
        raise UnsupportedError("tensors of a class of their own")
    return {name: x for name, x in named if last[id(x)] == name}


class _Times(NamedTuple):
    """A multiple of the batch."""

    factor: int


class _Merge:
    """What is common to two runs at the batches `sizes`."""

    def __init__(self, sizes: tuple[int, int]) -> None:
        self._sizes = sizes

    def __call__(self, one: Any, two: Any) -> Any:
        """The value at both; a number that is the same multiple of both batches becomes `_Times`.

        Raises:
            UnsupportedError: the values are not alike.
        """
        if type(one) is not type(two):
            raise UnsupportedError("another type at another batch")
        if isinstance(one, dict):
            return dict(zip(one, self._each([*one.values()], [*two.values()]), strict=True))
        if type(one) in (list, tuple):
            return type(one)(self._each(one, two))
        return one if one == two else self._number(one, two)

    def _each(self, one: Any, two: Any) -> list[Any]:
        if len(one) != len(two):
            raise UnsupportedError("another number of values at another batch")
        return [self(a, b) for a, b in zip(one, two, strict=True)]

    def _number(self, one: Any, two: Any) -> _Times:
        factor = one // self._sizes[0] if type(one) is int else 0
        if (factor * self._sizes[0], factor * self._sizes[1]) != (one, two):
            raise UnsupportedError(f"{one} at one batch, {two} at another")
        return _Times(factor)


class _Builder:
    """Writes the calls that two runs have in common as a graph."""

    def __init__(
        self, network: _Network, runs: tuple[Record, Record], sizes: tuple[int, int]
    ) -> None:
        self.graph = fx.Graph()
        self._free, self._merge = network.free, _Merge(sizes)
        self._one, self._two = runs
        self._nodes: dict[Ref, fx.Node] = {}
        self._numbers: dict[int, fx.Node] = {}
        self._meta: dict[str, Any] = {}
        for name, value in network.state.items():
            self._add_source(self.graph.get_attr(name), value)

    def add_inputs(self, names: list[str], inputs: list[torch.Tensor], batched: list[int]) -> None:
        """Adds the placeholders and the batch."""
        nodes = [self.graph.placeholder(name) for name in names]
        for i, (node, x) in enumerate(zip(nodes, inputs, strict=True)):
            self._add_source(node, self._input(x, names[i], i in batched))
        batch = self.graph.call_function(torch.ops.aten.sym_size.int, (nodes[batched[0]], 0))
        batch.meta["val"] = self._free.times(1)
        self._numbers[1] = batch

    def _input(self, x: torch.Tensor, name: str, batched: bool) -> torch.Tensor:
        if not batched:
            return self._free.static(x)
        return self._free.free(x, name)

    def add_calls(self) -> None:
        """Adds the operators and the output."""
        one, two = self._one, self._two
        if len(one.calls) != len(two.calls):
            raise UnsupportedError("another number of calls at another batch")
        for number, calls in enumerate(zip(one.calls, two.calls, strict=True)):
            self._add_call(number, *calls)
        if (one.outputs, one.out_spec) != (two.outputs, two.out_spec):
            raise UnsupportedError("other outputs at another batch")
        self.graph.output(tuple(None if r is None else self._nodes[r] for r in one.outputs))

    def _add_source(self, node: fx.Node, value: torch.Tensor) -> None:
        node.meta["val"] = value
        self._nodes[Ref(-1 - len(self._nodes))] = node

    def _add_call(self, number: int, one: Call, two: Call) -> None:
        if one.op is not two.op:
            raise UnsupportedError("another operator at another batch")
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
    """The lines as Python prints them."""
    lines = [
        f'File "{file}", line {line}, in forward\n    {linecache.getline(file, line).strip()}'
        for file, line in frames
    ]
    return "\n  ".join(lines)
