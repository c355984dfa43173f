"""Numbers and tensors that a model keeps outside its parameters and buffers, by where they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from fxprune.graph.program import named_tensors
from fxprune.write_back.slots import Slot, is_config

_OF_TORCH = frozenset(vars(nn.Module()))
_DEPTH = 6
_LONGEST = 4096  # entries of a container that is looked into: a longer one is data
_PLAIN = (int, float, type(None))  # bool is an int


class Place(NamedTuple):
    """Where a value is.

    Attributes:
        path: of the module.
        trail: the name of the attribute, and the keys from there.
    """

    path: str
    trail: tuple[Any, ...]

    def __str__(self) -> str:
        return str(Slot(self.path, "", self.trail, None))

    def put(self, model: nn.Module, value: Any) -> None:
        """Puts a value there."""
        Slot(self.path, "", self.trail, None).put(model, value)


def values_of(model: nn.Module) -> dict[Place, Any]:
    """Everything plain, or a tensor, in attributes of a model's modules: lists of numbers as one value."""
    seen: set[int] = set()
    return {
        Place(path, trail): value
        for path, module in model.named_modules()
        for name, held in vars(module).items()
        if name not in _OF_TORCH
        for trail, value in _leaves(held, (name,), seen)
    }


def constants(model: nn.Module) -> dict[Place, torch.Tensor]:
    """Tensors that are neither parameters nor buffers, nor other names of these."""
    own = {id(t) for t in named_tensors(model).values()}
    found = values_of(model).items()
    return {p: t for p, t in found if isinstance(t, torch.Tensor) and id(t) not in own}


def other_names(model: nn.Module) -> dict[Place, str]:
    """Attributes that hold a parameter or buffer of another name."""
    own = {id(t): name for name, t in named_tensors(model).items()}
    found = values_of(model).items()
    return {p: own[id(t)] for p, t in found if isinstance(t, torch.Tensor) and id(t) in own}


def _leaves(
    x: Any, trail: tuple[Any, ...], seen: set[int]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(x, torch.Tensor | str) or is_number(x):
        yield trail, x
        return
    if len(trail) > _DEPTH or id(x) in seen or not (held := _held(x)):
        return
    seen.add(id(x))
    for key, value in held.items():
        yield from _leaves(value, (*trail, key), seen)


def is_number(x: Any) -> bool:
    """Whether a value is a number, a flag or None, or a list or tuple of such values."""
    if isinstance(x, list | tuple):
        return len(x) <= _LONGEST and all(map(is_number, x))
    return type(x) is bool or type(x) in _PLAIN


def _held(x: Any) -> Mapping[Any, Any]:
    """What a container or a config holds."""
    if isinstance(x, list | tuple):
        return dict(enumerate(x)) if len(x) <= _LONGEST else {}
    if isinstance(x, dict):
        plain = {k: v for k, v in x.items() if type(k) in (str, int)}
        return plain if len(x) <= _LONGEST else {}
    if not is_config(x) or _root(x) in sys.stdlib_module_names - {"types"}:
        return {}  # a logger, a lock: things of the process
    return {k: v for k, v in vars(x).items() if not k.startswith("_")}


def _root(x: object) -> str:
    return type(x).__module__.partition(".")[0]
