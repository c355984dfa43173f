"""Builds a graph with free sizes from runs of a network at different sizes.

Most of the time of an export is spent on symbolic sizes and proxies. Here the network runs twice on tensors of
known sizes, without data; a number that follows the sizes of the inputs in both runs is written in terms of them. A
network that this approach does not cover raises `UnsupportedError`, and the caller exports it instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.dynamic import Asked, free_sizes
from fxprune.capture.network import Network
from fxprune.capture.record import UnsupportedError
from fxprune.capture.search import Found, find_free
from fxprune.capture.write import write_graph
from fxprune.graph.inputs import FIXED, GUARDS
from fxprune.torch_private import input_codegen

_CONSTANTS = (bool, int, float, str, type(None))


class Traced(NamedTuple):
    """A graph whose get_attr nodes name tensors of the network or constants, and the nesting of its outputs."""

    graph: fx.Graph
    constants: dict[str, torch.Tensor]
    out_spec: pytree.TreeSpec


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    asked: Asked,
    watch: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Traced:
    """Returns the graph that `torch.export` would make of a network with free sizes.

    Full slices of a free axis, which an export contains and which change nothing, are omitted.

    Args:
        model: the network.
        args: the example positional inputs.
        kwargs: the example keyword inputs.
        asked: which axes may be free.
        watch: a context that is entered around the first run.

    Raises:
        UnsupportedError: this approach does not cover the network.
    """
    names = _input_names(model, args, kwargs)
    inputs = [*args, *kwargs.values()]
    sizes = free_sizes(asked, names, inputs)
    _check_layouts(inputs, {i for s in sizes for i, _ in s.axes})
    network = Network(model, inputs, list(kwargs))
    with watch():
        first = network.run({}, autograd=True)
    constants = {name: x.clone() for name, x in first.named_constants().items()}
    if any(hasattr(model, name) for name in constants):
        raise UnsupportedError("the name of a constant is already in use")
    found = find_free(network, first, sizes, names)
    _require(asked, found, inputs)
    graph = write_graph(network, names, first, found)
    _mark(graph, network, found)
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


def _check_layouts(inputs: list[Any], free: set[int]) -> None:
    if not free:
        raise UnsupportedError("no axis of the inputs may be free")
    if not all(inputs[i].is_contiguous() for i in free):
        raise UnsupportedError("a free axis has unusual strides")


def _require(asked: Asked, found: Found, inputs: list[Any]) -> None:
    """Leaves a network to export of which an axis is fixed that should be free: it may do better."""
    tensors = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor) and x.ndim]
    batch = (tensors[0], 0)
    for axis, why in found.fixed.items():
        if axis in asked.required or (axis == batch and axis in asked.tried):
            raise UnsupportedError(f"axis {axis[1]} of input {axis[0]} is not free: {why}")


def _mark(graph: fx.Graph, network: Network, found: Found) -> None:
    """Notes at the inputs under which conditions the graph holds, and why other axes are fixed."""
    places = graph.find_nodes(op="placeholder")
    for i, axis in sorted(found.fixed):
        places[i].meta.setdefault(FIXED, {})[axis] = found.fixed[i, axis]
    guards = [network.free.condition(c.expression) for c in found.conditions]
    if guards and places:
        places[0].meta[GUARDS] = guards


__all__ = ["Traced", "trace"]
