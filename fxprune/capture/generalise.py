"""A graph with a free batch from two runs of a network at two batches.

Most of an export's time goes into symbolic sizes and proxies. Here the network runs twice on tensors of
known sizes, without data, and a number that is the same multiple of both batches is written with the
batch. Whatever this does not cover raises UnsupportedError; the caller then exports.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.network import Network
from fxprune.capture.record import Record, UnsupportedError
from fxprune.capture.write import write_graph
from fxprune.torch_private import input_codegen

_CONSTANTS = (bool, int, float, str, type(None))
_MOST_BATCHED = 4  # inputs with a batch; the ways to divide them are tried
_FURTHER = 101  # a prime: no remainder by a smaller number is the same at both batches


class Traced(NamedTuple):
    """A graph whose get_attr nodes name tensors of the network, or constants, and how its outputs are nested."""

    graph: fx.Graph
    constants: dict[str, torch.Tensor]
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
    network = Network(model, inputs, list(kwargs))
    with watch():
        first = network.run(dict.fromkeys(batched, one), autograd=True)
    constants = {name: x.clone() for name, x in first.named_constants().items()}
    if any(hasattr(model, name) for name in constants):
        raise UnsupportedError("a constant's name is taken")
    for part in _parts(batched):
        _check_one_batch(network, first, {i: further if i in part else one for i in batched})

    def at_both(*, autograd: bool) -> fx.Graph:
        second = network.run(dict.fromkeys(batched, further), autograd=autograd)
        return write_graph(network, names, batched, {one: first, further: second})

    try:
        graph = at_both(autograd=False)  # in half the time
    except UnsupportedError:  # kernels of attention lay out otherwise with gradients
        graph = at_both(autograd=True)
    _, in_spec = pytree.tree_flatten((args, dict(kwargs)))
    graph.set_codegen(input_codegen(names, in_spec, first.out_spec))
    return Traced(graph, constants, first.out_spec)


def _input_names(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """The names in `forward` of the inputs, every one a tensor of its own, or a constant."""
    inputs = [*args, *kwargs.values()]
    tensors = [x for x in inputs if type(x) is torch.Tensor]
    if not {type(x) for x in inputs} <= {torch.Tensor, *_CONSTANTS}:
        raise UnsupportedError("inputs that are neither plain tensors nor constants")
    if len(set(map(id, tensors))) < len(tensors):
        raise UnsupportedError("one tensor twice")
    known = inspect.signature(model.forward).parameters.values()
    plain = [p.name for p in known if p.kind is p.POSITIONAL_OR_KEYWORD]
    names = [*plain[: len(args)], *kwargs]
    if len(names) < len(inputs) or not set(names) <= set(plain):
        raise UnsupportedError("inputs without a name of their own")
    return names


def _batched(inputs: list[Any]) -> list[int]:
    """Numbers of the inputs whose axis 0 is as long as that of the first one."""
    axes = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor) and x.ndim]
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


def _check_one_batch(network: Network, first: Record, batches: Mapping[int, int]) -> None:
    """Raises where inputs of unlike batches give other numbers than the first run; most networks fail on them."""
    try:
        found = network.run(batches)
    except UnsupportedError:
        raise
    except Exception:
        return
    calls = [c[:3] for c in found.calls] == [c[:3] for c in first.calls]
    if not calls or not found.has_constants_of(first):
        raise UnsupportedError("inputs with batches of their own")
