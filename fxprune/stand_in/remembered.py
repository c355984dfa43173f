"""What objects hold, to be put back in place."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from fxprune.stand_in.objects import (
    MISSING,
    attributes_of,
    get_slot,
    is_foreign,
    put_items,
    slots_of,
)

_PutBack = Callable[[], None]


class Remembered:
    """Objects and all that they hold, put back in place, and only where something has changed.

    Containers are followed, and objects of classes outside torch and the standard library.

    Args:
        data: remember the data of tensors too.
    """

    def __init__(self, *, data: bool = False) -> None:
        self._data = data
        self._seen: dict[int, Any] = {}
        self._undo: list[_PutBack] = []

    def add(self, x: Any) -> None:
        """Remembers an object and all that it holds."""
        waiting = [x]
        while waiting:
            x = waiting.pop()
            if id(x) not in self._seen and not isinstance(x, int | float | str | bytes | type):
                self._seen[id(x)] = x
                for put_back, held in self._states(x):
                    self._undo.append(put_back)
                    waiting += held

    def call_back(self, put_back: _PutBack) -> None:
        """Adds something else to do when all is put back."""
        self._undo.append(put_back)

    def put_back(self) -> None:
        """Puts all back, the last first; again after another run, where it is to be as it was at first."""
        for put_back in reversed(self._undo):
            put_back()

    def _states(self, x: Any) -> Iterator[tuple[_PutBack, Iterable[Any]]]:
        if isinstance(x, torch.Tensor):
            if self._data and type(x) in (torch.Tensor, nn.Parameter) and not x.is_meta:
                yield partial(_put_data, x, x.detach().clone()), ()
            return
        if isinstance(x, types.FunctionType | types.ModuleType):
            return
        if isinstance(x, dict):
            yield _dict(x)
        elif isinstance(x, list | set | deque):
            yield partial(_put_entries, x, (saved := list(x))), saved
        elif isinstance(x, tuple):
            yield _nothing, x
        if isinstance(x, nn.Module) or not is_foreign(type(x)):
            yield _dict(attributes_of(x))
            for slot in slots_of(type(x)):
                value = get_slot(slot, x)
                yield partial(_put_slot, slot, x, value), (value,)


def _nothing() -> None:
    """A tuple cannot change."""


def _dict(x: dict[Any, Any]) -> tuple[_PutBack, Iterable[Any]]:
    saved = dict(dict.items(x))
    return partial(put_items, x, saved), (*saved, *saved.values())


def _put_entries(x: Any, saved: Any) -> None:
    if len(x) == len(saved) and all(a is b for a, b in zip(x, saved, strict=True)):
        return
    if isinstance(x, list):
        list.__setitem__(x, slice(None), saved)
    elif isinstance(x, set):
        set.intersection_update(x, saved)
        set.update(x, saved)
    else:
        deque.clear(x)
        deque.extend(x, saved)


def _put_slot(slot: Any, x: Any, value: Any) -> None:
    if get_slot(slot, x) is value:
        return
    if value is MISSING:
        slot.__delete__(x)
    else:
        slot.__set__(x, value)


def _put_data(x: torch.Tensor, saved: torch.Tensor) -> None:
    if not torch.equal(x, saved):
        with torch.no_grad():
            x.copy_(saved)
