"""Which axes of the inputs may be free: the argument `dynamic_shapes`, in the form that torch.export takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from fxprune.capture.record import UnsupportedError
from fxprune.capture.search import Axis, FreeSize
from fxprune.errors import CaptureError

_HINTS = type(Dim.AUTO)  # Dim.AUTO, Dim.DYNAMIC and Dim.STATIC


@dataclass(frozen=True)
class Asked:
    """What a caller wants of the axes of each tensor among the inputs, which are numbered as leaves.

    Attributes:
        tried: the axes that may be free.
        required: those that have to be.
        named: the size of those that share one by name, with its bounds.
    """

    tried: frozenset[Axis]
    required: frozenset[Axis] = frozenset()
    named: Mapping[Axis, Any] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether an axis may be free at all."""
        return bool(self.tried)


def asked_for(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Any, *, free: bool
) -> Asked:
    """Reads `dynamic_shapes`.

    Args:
        model: the network, whose forward names the inputs.
        args: the example positional inputs.
        kwargs: the example keyword inputs.
        shapes: a dict by the names of inputs, or a tuple by position, of what torch.export takes for each: None, a
            dict by axis, or a tuple or list over the axes, with `Dim.AUTO`, `Dim.DYNAMIC`, `Dim.STATIC`, a `Dim`, None
            or the length. "all" and None try every axis, "batch" axis 0 of what is as long there as the first input.
        free: whether None stands for every axis, and not for none.

    Raises:
        CaptureError: it does not fit the inputs.
    """
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    if shapes is None and not free:
        return Asked(frozenset())
    if shapes is None or isinstance(shapes, str):
        axes = [(i, j) for i, x in enumerate(leaves) for j in range(_rank(x))]
        if shapes == "batch":
            batch = [a for a in axes if a[1] == 0]
            axes = [a for a in batch if _length(leaves, a) == _length(leaves, batch[0])]
        elif shapes not in (None, "all"):
            raise _misfit(f"{shapes[:80]!r} names no axes")
        return Asked(frozenset(a for a in axes if _length(leaves, a) > 1))
    tried, required, named = set[Axis](), set[Axis](), dict[Axis, Any]()
    number = 0
    for name, value, wish in _by_input(model, args, kwargs, shapes):
        inner = pytree.tree_leaves(value)
        for x, one in zip(inner, _spread(name, value, wish), strict=True):
            for axis, dim in _axes(name, x, one):
                place = number, axis
                tried.add(place)
                named[place] = dim
                if isinstance(dim, Dim) or dim.type == Dim.DYNAMIC.type:
                    required.add(place)
            number += 1
    return Asked(frozenset(tried), frozenset(required), named)


def _rank(x: Any) -> int:
    return x.ndim if isinstance(x, torch.Tensor) else 0


def _length(leaves: Sequence[Any], axis: Axis) -> int:
    return int(leaves[axis[0]].shape[axis[1]])


def _by_input(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Any
) -> list[tuple[str, Any, Any]]:
    """Name, value, and what is asked of each input, in order."""
    names = _names(model, len(args))
    given = [*zip(names, args, strict=False), *kwargs.items()]
    if isinstance(shapes, Mapping):
        if unknown := shapes.keys() - {name for name, _ in given}:
            raise _misfit(
                f"there is no input {sorted(map(str, unknown))[0]!r}",
                f"the inputs are {', '.join(n for n, _ in given)}",
            )
        return [(name, value, shapes.get(name)) for name, value in given]
    if not isinstance(shapes, tuple | list) or len(shapes) != len(given):
        raise _misfit(
            f"it is a {type(shapes).__name__}"
            + (f" of {len(shapes)}" if isinstance(shapes, tuple | list) else ""),
            f"there are {len(given)} inputs: {', '.join(n for n, _ in given)}",
        )
    return [(name, value, wish) for (name, value), wish in zip(given, shapes, strict=True)]


def _names(model: nn.Module, count: int) -> list[str]:
    """Names of positional inputs; those of a variable number are named after it."""
    names: list[str] = []
    for p in inspect.signature(model.forward).parameters.values():
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            names.append(p.name)
        elif p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}_{i}" for i in range(count - len(names))]
    return names[:count]


def _spread(name: str, value: Any, wish: Any) -> list[Any]:
    """What is asked of each leaf of an input."""
    leaves, spec = pytree.tree_flatten(value)
    if wish is None or spec.is_leaf():
        return [wish] * len(leaves)
    try:
        return spec.flatten_up_to(wish)
    except ValueError as error:
        raise _misfit(f"input {name} is nested in another way", str(error)) from error


def _axes(name: str, x: Any, wish: Any) -> list[tuple[int, Any]]:
    """The axes of a tensor that may be free, with what is asked of each."""
    if wish is None:
        return []
    if not isinstance(x, torch.Tensor):
        raise _misfit(f"input {name} is a {type(x).__name__}", "only axes of tensors can be free")
    pairs = list(wish.items()) if isinstance(wish, Mapping) else list(enumerate(wish))
    if not isinstance(wish, Mapping) and len(pairs) != x.ndim:
        raise _misfit(f"input {name} has {x.ndim} axes", f"{len(pairs)} are given")
    found: list[tuple[int, Any]] = []
    for axis, dim in pairs:
        if not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
            raise _misfit(f"input {name} has no axis {axis!r}", f"it has {x.ndim}")
        if isinstance(dim, int) and not isinstance(dim, bool) and dim != x.shape[axis]:
            raise _misfit(
                f"axis {axis} of input {name} is {x.shape[axis]} long", f"{dim} is asked for"
            )
        if dim is None or isinstance(dim, int):
            continue
        if not isinstance(dim, Dim | _HINTS):
            raise _misfit(f"axis {axis} of input {name} is to be {dim!r}", "that is no Dim")
        if isinstance(dim, _HINTS) and dim.type == Dim.STATIC.type:
            continue
        found.append((axis % x.ndim, dim))
    return found


def _misfit(what: str, why: str = "") -> CaptureError:
    return CaptureError(
        f"dynamic_shapes does not fit the inputs: {what}",
        where="dynamic_shapes",
        why=why,
        do='write "all", "batch", or a dict by the names of the inputs, such as '
        "{'x': {0: Dim.AUTO, 1: Dim('length', max=512)}}",
    )


def free_sizes(asked: Asked, names: Sequence[str], inputs: Sequence[Any]) -> list[FreeSize]:
    """The sizes to try: one for each axis, but those that have a name in common share theirs."""
    by_name: dict[str, FreeSize] = {}
    sizes: list[FreeSize] = []
    for i, axis in sorted(asked.tried):
        example, dim = int(inputs[i].shape[axis]), asked.named.get((i, axis))
        size = FreeSize(
            f"{names[i]}.shape[{axis}]", [(i, axis)], example, required=(i, axis) in asked.required
        )
        if dim is not None:
            size.least, size.most = _bound(dim.min) or 1, _bound(dim.max)
        if isinstance(dim, Dim):
            if type(dim) is not Dim:
                raise UnsupportedError("a size that is computed from another one")
            known = by_name.setdefault(dim.__name__, size)
            if known is not size:
                known.axes.append((i, axis))
                continue
        sizes.append(size)
    return sizes


def _bound(limit: Any) -> int | None:
    return limit if isinstance(limit, int) and limit < 1 << 62 else None


__all__ = ["Asked", "asked_for", "free_sizes"]
