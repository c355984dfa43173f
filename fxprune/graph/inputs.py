"""Checks what a captured graph is called with: it holds for inputs like the example only.

A graph contains the Python numbers, and most sizes, of the example inputs as constants. With other ones it
would run and return something wrong, so the code of the graph compares them first.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from textwrap import shorten
from typing import Any

import torch
from torch import fx
from torch.fx._pytree import tree_flatten_spec
from torch.utils import _pytree as pytree

from fxprune.errors import InputError
from fxprune.torch_private import check_in_code, multiple, pytree_specs, spec_children, static_size

_SPELLED = (bool, int, float, str, type(None))  # their repr is code
_AGAIN = "capture the model again, with an example input like this one"

# An input, its name, and an axis whose length is a multiple of a free size, with the factor.
Axis = tuple[Any, str, int, int]


def check_inputs(graph: fx.Graph) -> None:
    """Makes the code of a captured graph compare its inputs with the example values of its placeholders.

    A graph without example values, such as one just unpickled, keeps the checks that it has.
    """
    places = graph.find_nodes(op="placeholder")
    specs = pytree_specs(graph)
    if specs is None or not all("val" in n.meta for n in places):
        return
    known: dict[str, Any] = {f.__name__: f for f in (check_tensor, check_constant, check_alike)}
    lines = []
    for node in places:
        name, value = str(node.target), node.meta["val"]
        if isinstance(value, torch.Tensor):
            sizes = tuple(map(static_size, value.shape))
            lines.append(f"check_tensor({name}, {name!r}, {value.dtype}, {sizes})")
        elif not isinstance(value, torch.SymInt):
            spelled = repr(value) if type(value) in _SPELLED else f"captured_{name}"
            lines.append(f"check_constant({name}, {name!r}, {spelled})")
            if type(value) not in _SPELLED:
                known[spelled] = value
    lines += [f"check_alike({', '.join(axes)})" for axes in _alike(places)]
    nested = not all(c.is_leaf() for part in spec_children(specs[0]) for c in spec_children(part))
    check_in_code(graph, lines, known, flatten_inputs if nested else None)


def _alike(places: Sequence[fx.Node]) -> Iterator[list[str]]:
    """Yields the axes that share a free size, if there are several, as code."""
    axes = defaultdict[str, list[str]](list)
    for node in places:
        value = node.meta["val"]
        for i, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if static_size(size) is None and (found := multiple(size)) is not None:
                symbol, factor = found
                axes[symbol].append(f"({node.target}, {str(node.target)!r}, {i}, {factor})")
    yield from (a for a in axes.values() if len(a) > 1)


def bind_inputs(
    module: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Returns the inputs by their names.

    Raises:
        InputError: an input is missing, or there is one more than at capture.
    """
    known = inspect.signature(module.forward)
    try:
        return known.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the inputs are not those of the capture: {error}",
            where=f"forward{known}",
            why="an input that had its default then is a constant of the captured graph",
            do=f"pass {', '.join(known.parameters) or 'no inputs'}; or {_AGAIN}",
        ) from error


def flatten_inputs(names: Sequence[str], inputs: Any, spec: pytree.TreeSpec) -> list[Any]:
    """Returns positional and keyword inputs as a flat list.

    Args:
        names: the names of the inputs, the positional ones first.
        inputs: a sequence of the positional inputs and a dict of the keyword inputs.
        spec: how they must be nested.

    Raises:
        InputError: one of them is nested in another way.
    """
    args, kwargs = inputs
    leaves: list[Any] = []
    children = [c for part in spec_children(spec) for c in spec_children(part)]
    for name, value, child in zip(names, (*args, *kwargs.values()), children, strict=True):
        if child.is_leaf():
            leaves.append(value)
        elif isinstance(value, fx.Proxy):
            leaves += tree_flatten_spec(value, child)
        else:
            leaves += _flatten(name, value, child)
    return leaves


def _flatten(name: str, value: Any, spec: pytree.TreeSpec) -> list[Any]:
    try:
        return spec.flatten_up_to(value)
    except ValueError as error:
        raise InputError(
            f"input {name} is not nested as it was at capture",
            where=name,
            why=str(error),
            do=f"pass the same containers, of the same lengths and with the same keys; or {_AGAIN}",
        ) from error


def check_tensor(x: Any, name: str, dtype: torch.dtype, sizes: Sequence[int | None]) -> None:
    """Compares an input with the tensor that was captured.

    Args:
        x: the input.
        name: its name.
        dtype: a dtype of the required class: floating-point, complex, integer or boolean.
        sizes: the required sizes; None where any is allowed.

    Raises:
        InputError: it is not a tensor, or has another class of dtype, number of axes, or size of an axis.
    """
    if isinstance(x, fx.Proxy):  # another tool of torch.fx traces the code
        return
    if not isinstance(x, torch.Tensor):
        raise InputError(
            f"input {name} is {_shown(x)}, but a tensor was captured", where=name, do=_AGAIN
        )
    if x.dtype != dtype and _kind(x.dtype) != _kind(dtype):
        raise InputError(
            f"input {name} is {_kind(x.dtype)} ({x.dtype}), but {_kind(dtype)} ({dtype}) was captured",
            where=name,
            why="operators compute something else with another class of numbers",
            do=f"convert the input with .to({dtype}), or {_AGAIN}",
        )
    if x.dim() != len(sizes):
        raise InputError(
            f"input {name} has {x.dim()} axes, but {len(sizes)} were captured",
            where=name,
            why=f"captured with sizes {_sizes(sizes)}, called with {tuple(x.shape)}",
            do=_AGAIN,
        )
    for axis, size in enumerate(sizes):
        if size is not None and x.shape[axis] != size:
            raise InputError(
                f"axis {axis} of input {name} is {x.shape[axis]} long, but {size} was captured",
                where=name,
                why=f"captured with sizes {_sizes(sizes)}: only those marked * are free",
                do=_AGAIN,
            )


def check_constant(x: Any, name: str, captured: Any) -> None:
    """Compares an input with the constant that was captured.

    Raises:
        InputError: it has another type or value.
    """
    if x is captured or isinstance(x, fx.Proxy):
        return
    if type(x) is not type(captured) or not (x == captured or (x != x and captured != captured)):
        raise InputError(
            f"input {name} is {_shown(x)}, but {_shown(captured)} was captured",
            where=name,
            why="what is not a tensor is a constant of the captured graph",
            do=_AGAIN,
        )


def check_alike(*axes: Axis) -> None:
    """Compares axes that share a free size, which is the batch size in general.

    Raises:
        InputError: their lengths contradict each other.
    """
    x, first, i, factor = axes[0]
    if isinstance(x, fx.Proxy):
        return
    for y, name, j, other in axes[1:]:
        if x.shape[i] * other != y.shape[j] * factor:
            raise InputError(
                f"axis {j} of input {name} is {y.shape[j]} long, axis {i} of input {first} {x.shape[i]}",
                where=name,
                why="both were captured with one free size"
                + (f", {other} and {factor} times" if (other, factor) != (1, 1) else ""),
                do="pass inputs of the same batch",
            )


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "floating-point"
    if dtype.is_complex:
        return "complex"
    return "boolean" if dtype == torch.bool else "integer"


def _sizes(sizes: Sequence[int | None]) -> str:
    return f"({', '.join('*' if n is None else str(n) for n in sizes)})"


def _shown(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        return "a tensor"
    plain = x is None or isinstance(x, int | float | complex | str | bytes | torch.dtype | Enum)
    return shorten(repr(x), 200, placeholder="...") if plain else f"a {type(x).__name__}"
