"""Everything that an object holds, to be compared before and after."""

from __future__ import annotations

import functools
import gc
import logging
import types
from collections.abc import Iterable
from typing import Any

import torch

from fxprune.stand_in.objects import attributes_of, get_slot, is_foreign, slots_of
from fxprune.torch_private import is_symbolic

_LEAVES = (
    types.ModuleType,
    types.CodeType,
    types.BuiltinFunctionType,
    functools._lru_cache_wrapper,
    logging.Logger,
    torch._ops.OperatorBase,
    int,
    float,
    str,
    bytes,
)


def check_unchanged(before: dict[int, Any], x: object) -> None:
    """Asserts that `x` holds the objects of `state_of` as they were, and nothing without data."""
    now = state_of(x)
    for number, (owner, held, flags, data) in before.items():
        assert number in now, f"a {type(owner).__name__} is gone: {owner!r}"
        _, held_now, flags_now, data_now = now[number]
        assert held == held_now, f"a {type(owner).__name__} holds something else: {owner!r}"
        assert flags == flags_now, f"a tensor was {flags}, is {flags_now}"
        assert data is None or torch.equal(data, data_now), f"a tensor has other data: {data_now}"
    new = [owner for number, (owner, *_) in now.items() if number not in before]
    assert not any(map(is_symbolic, new)), "something without data stays"
    assert not new, "an object has come"


def state_of(x: object) -> dict[int, Any]:
    """The objects that `x` reaches: what each of them holds by identity, flags and data of tensors.

    Classes of torch and of the standard library, globals of functions, and the caches of loggers and operators
    are left out.
    """
    found: dict[int, Any] = {}
    waiting = [x]
    while waiting:
        x = waiting.pop()
        if id(x) in found or isinstance(x, _LEAVES) or (isinstance(x, type) and is_foreign(x)):
            continue
        held = list(_held(x))
        found[id(x)] = (x, tuple(map(id, held)), _flags(x), _data(x))
        waiting += held
    return found


def _held(x: Any) -> Iterable[Any]:
    if isinstance(x, type):
        return [v for item in sorted(vars(x).items()) for v in item]
    if isinstance(x, types.FunctionType):
        return (*(x.__closure__ or ()), x.__defaults__, x.__kwdefaults__, vars(x))
    own = attributes_of(x)
    held = [*([own] if own else ()), *(get_slot(s, x) for s in slots_of(type(x)))]
    if isinstance(x, torch.Tensor):
        return [*held, x.grad]
    if isinstance(x, dict):
        return held + [v for item in dict.items(x) for v in item]
    return held + gc.get_referents(x)


def _flags(x: object) -> tuple[Any, ...]:
    if not isinstance(x, torch.Tensor):
        return ()
    return (
        type(x),
        x.requires_grad,
        x.shape,
        x.dtype,
        x.device,
        None if x.is_inference() else x._version,
    )


def _data(x: object) -> torch.Tensor | None:
    if not isinstance(x, torch.Tensor) or x.is_meta or is_symbolic(x):
        return None
    return x.detach().clone()
