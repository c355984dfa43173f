"""Checks what a captured graph is called with: it holds for inputs like the example only.

A graph contains the Python numbers, and most sizes, of the example inputs as constants. With other ones it
would run and return something wrong, so the code of the graph compares them first.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from textwrap import shorten
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.fx._pytree import tree_flatten_spec
from torch.utils import _pytree as pytree

from fxprune.errors import InputError
from fxprune.torch_private import (
    check_in_code,
    multiple,
    pytree_specs,
    size_code,
    spec_children,
    static_size,
)

_SPELLED = (bool, int, float, str, type(None))  # their repr is code
_MATH = ("ceil", "floor", "trunc", "sqrt", "log2")  # what the code of a condition may call
_FARTHEST = 1024  # how far from the size that was passed others are looked for
_AGAIN = "capture the model again, with an example input like this one"

GUARDS = "guards"
"""Metadata of the first input: comparisons of free sizes under which the graph holds, known at run time only."""
FIXED = "fixed"
"""Metadata of an input: why an axis of it is not free, by the number of the axis."""

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
    checks = (check_tensor, check_constant, check_alike, check_sizes)
    known: dict[str, Any] = {f.__name__: f for f in checks}
    lines = []
    for node in places:
        name, value = str(node.target), node.meta["val"]
        if isinstance(value, torch.Tensor):
            sizes = tuple(map(static_size, value.shape))
            given = f"{name}, {name!r}, {value.dtype}, {sizes}"
            reasons = {k: v for k, v in node.meta.get(FIXED, {}).items() if sizes[k] is not None}
            lines.append(
                f"check_tensor({given}, {reasons})" if reasons else f"check_tensor({given})"
            )
        elif not isinstance(value, torch.SymInt):
            spelled = repr(value) if type(value) in _SPELLED else f"captured_{name}"
            lines.append(f"check_constant({name}, {name!r}, {spelled})")
            if type(value) not in _SPELLED:
                known[spelled] = value
    lines += [f"check_alike({', '.join(axes)})" for axes in _alike(places)]
    lines += _guarded(places)
    for name in _MATH:
        if any(f"math.{name}(" in line for line in lines):
            known[f"math_{name}"] = getattr(math, name)
            lines = [line.replace(f"math.{name}(", f"math_{name}(") for line in lines]
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


def _guarded(places: Sequence[fx.Node]) -> Iterator[str]:
    """Yields the check of the conditions on free sizes as code, if there are any that the inputs' sizes decide."""
    axes: dict[str, tuple[fx.Node, int, int]] = {}
    for node in places:
        value = node.meta["val"]
        for i, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            found = multiple(size) if static_size(size) is None else None
            if found is not None and axes.get(found[0], (node, 0, 0))[2] != 1:
                axes[found[0]] = (node, i, found[1])
    short = {symbol: f"n{k}" for k, symbol in enumerate(axes)}
    long = {
        symbol: f"{n.target}.shape[{i}]" + (f" // {k}" if k != 1 else "")
        for symbol, (n, i, k) in axes.items()
    }
    guards = [g for node in places for g in node.meta.get(GUARDS, ())]
    codes = [(size_code(g, short), size_code(g, long)) for g in guards]
    held = [pair for pair in codes if None not in pair]
    if held:
        given = "".join(f"({n.target}, {str(n.target)!r}, {i}, {k}), " for n, i, k in axes.values())
        code = "".join(f"{short}, " for short, _ in held)
        texts = tuple(text for _, text in held)
        yield f"check_sizes(({given}), lambda {', '.join(short.values())}: ({code}), {texts})"


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


def check_tensor(
    x: Any,
    name: str,
    dtype: torch.dtype,
    sizes: Sequence[int | None],
    fixed: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Compares an input with the tensor that was captured.

    Args:
        x: the input.
        name: its name.
        dtype: a dtype of the required class: floating-point, complex, integer or boolean.
        sizes: the required sizes; None where any is allowed.
        fixed: why an axis has to have its size.

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
                why=f"captured with sizes {_sizes(sizes)}: only those marked * are free"
                + (f"; with another size, {fixed[axis]}" if axis in fixed else ""),
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


def check_sizes(
    axes: Sequence[Axis],
    held: Callable[..., tuple[bool, ...]],
    texts: Sequence[str],
) -> None:
    """Compares the free sizes with what the network was found to require of them at capture.

    Args:
        axes: an axis for each free size, which is the length over the factor.
        held: whether each condition holds, given the free sizes.
        texts: the conditions in words.

    Raises:
        InputError: one does not hold.
    """
    if any(isinstance(x, fx.Proxy) for x, *_ in axes):
        return
    sizes = [x.shape[i] // factor for x, _, i, factor in axes]
    for number, (holds, text) in enumerate(zip(held(*sizes), texts, strict=True)):
        if not holds:
            _refuse(axes, sizes, held, number, text)


def _refuse(
    axes: Sequence[Axis],
    sizes: list[int],
    held: Callable[..., tuple[bool, ...]],
    number: int,
    text: str,
) -> None:
    for place, (x, name, axis, factor) in enumerate(axes):
        if f"{name}.shape[{axis}]" in text:
            near = [n * factor for n in _near(sizes, place, held)]
            raise InputError(
                f"axis {axis} of input {name} is {x.shape[axis]} long, and the graph does not hold for that",
                where=name,
                why=f"the network was captured where {text}",
                do=(
                    f"pass {' or '.join(map(str, near))}, the nearest it holds for; "
                    if near
                    else ""
                )
                + f"or {_AGAIN}",
            )
    raise InputError(f"the graph does not hold: {text}", where=str(number), do=_AGAIN)


def _near(sizes: list[int], place: int, held: Callable[..., tuple[bool, ...]]) -> list[int]:
    """The next smaller and larger size for which every condition holds."""
    found: list[int] = []
    for step in (-1, 1):
        for k in range(1, _FARTHEST):
            n = sizes[place] + step * k
            if n < 1:
                break
            if _all_hold(held, [*sizes[:place], n, *sizes[place + 1 :]]):
                found.append(n)
                break
    return found


def _all_hold(held: Callable[..., tuple[bool, ...]], sizes: list[int]) -> bool:
    try:
        return all(held(*sizes))
    except ArithmeticError:
        return False


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
