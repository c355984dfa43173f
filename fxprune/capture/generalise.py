"""Builds a graph with a free batch size from two runs of a network at two batch sizes.

Most of the time of an export is spent on symbolic sizes and proxies. Here the network runs twice on
tensors of known sizes, without data; a number that is the same multiple of both batch sizes is
written in terms of the batch size. A network that this approach does not cover raises
`UnsupportedError`, and the caller exports it instead.
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
    """A graph whose get_attr nodes name tensors of the network or constants, and the nesting of its outputs."""

    graph: fx.Graph
    constants: dict[str, torch.Tensor]
    out_spec: pytree.TreeSpec


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    watch: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Traced:
    """Returns the graph that `torch.export` would make of a network with a free batch size.

    Full slices of the batch axis, which an export contains and which change nothing, are omitted.

    Args:
        model: the network.
        args: the example positional inputs.
        kwargs: the example keyword inputs.
        watch: a context that is entered around the first run.

    Raises:
        UnsupportedError: this approach does not cover the network.
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
        raise UnsupportedError("the name of a constant is already in use")
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
    """Returns the names of the inputs in `forward`; each input must be a separate tensor or a constant."""
    inputs = [*args, *kwargs.values()]
    tensors = [x for x in inputs if type(x) is torch.Tensor]
    if not {type(x) for x in inputs} <= {torch.Tensor, *_CONSTANTS}:
        raise UnsupportedError("an input is neither a plain tensor nor a constant")
    if len(set(map(id, tensors))) < len(tensors):
        raise UnsupportedError("the same tensor is passed twice")
    known = inspect.signature(model.forward).parameters.values()
    plain = [p.name for p in known if p.kind is p.POSITIONAL_OR_KEYWORD]
    names = [*plain[: len(args)], *kwargs]
    if len(names) < len(inputs) or not set(names) <= set(plain):
        raise UnsupportedError("an input has no name of its own in forward")
    return names


def _batched(inputs: list[Any]) -> list[int]:
    """Returns the numbers of the inputs whose axis 0 is as long as that of the first one."""
    axes = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor) and x.ndim]
    found = [i for i in axes if len(inputs[i]) == len(inputs[axes[0]])]
    if not 0 < len(found) <= _MOST_BATCHED or len(inputs[found[0]]) < 2:
        raise UnsupportedError("the inputs have no batch axis, or too many")
    if not all(inputs[i].is_contiguous() for i in found):
        raise UnsupportedError("the batch axis has unusual strides")
    return found


def _parts(numbers: list[int]) -> Iterator[tuple[int, ...]]:
    """Yields every way to divide the inputs in two, as the part without the first input."""
    rest = numbers[1:]
    for size in range(1, len(numbers)):
        yield from combinations(rest, size)


def _check_one_batch(network: Network, first: Record, batches: Mapping[int, int]) -> None:
    """Raises if runs with unequal batch sizes give other numbers than the first run; most networks fail then."""
    try:
        found = network.run(batches)
    except UnsupportedError:
        raise
    except Exception:
        return
    calls = [c[:3] for c in found.calls] == [c[:3] for c in first.calls]
    if not calls or not found.has_constants_of(first):
        raise UnsupportedError("the inputs have independent batch sizes")
