"""State that the code of a model reaches by name: attributes of its classes, globals, caches of functions."""

from __future__ import annotations

import builtins
import functools
import gc
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fxprune.stand_in.objects import MISSING, is_foreign
from fxprune.stand_in.remembered import Remembered
from fxprune.torch_private import is_symbolic

_WRAPPERS = (staticmethod, classmethod, functools.cached_property)


def remember_outside(
    kinds: Iterable[type],
    functions: Iterable[types.FunctionType],
    remembered: Remembered,
    copies: Mapping[int, Any],
) -> None:
    """Remembers what methods and functions, and those that they name, find by name.

    A cache of `functools.lru_cache` cannot be put back: it is cleared if a run left in it tensors without
    data, sizes without numbers, or a copy.

    Args:
        kinds: classes whose methods may run.
        functions: others that may.
        remembered: where it goes.
        copies: the copies of objects.
    """
    walk = _Walk(remembered, copies)
    for x in (*kinds, *functions):
        walk.add(x)
    walk.follow()


class _Walk:
    def __init__(self, remembered: Remembered, copies: Mapping[int, Any]) -> None:
        self._remembered = remembered
        self._copies = copies
        self._seen: set[int] = set()
        self._functions: list[types.FunctionType] = []
        self._bindings: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}

    def add(self, x: Any) -> None:
        """A value that code may find by name."""
        if id(x) in self._seen:
            return
        self._seen.add(id(x))
        if isinstance(x, type):
            for base in x.__mro__:
                self._add_class(base)
        elif isinstance(x, types.FunctionType):
            self._functions.append(x)
        elif isinstance(x, types.MethodType | functools.partial):
            self.add(x.__func__ if isinstance(x, types.MethodType) else x.func)
        elif isinstance(x, property):
            for accessor in (x.fget, x.fset):
                self.add(accessor)
        elif isinstance(x, _WRAPPERS):
            self.add(x.func if isinstance(x, functools.cached_property) else x.__func__)
        elif isinstance(x, functools._lru_cache_wrapper):
            self._remembered.call_back(functools.partial(_clear, x, x.cache_info(), self._copies))
            self.add(x.__wrapped__)
        else:
            self._remembered.add(x)

    def follow(self) -> None:
        """Follows the functions, and in the end remembers which names they found."""
        while self._functions:
            self._add_function(self._functions.pop())
        for names, found in self._bindings.values():
            self._remembered.call_back(functools.partial(_bind, names, found))

    def _add_class(self, kind: type) -> None:
        if is_foreign(kind) or (id(kind) in self._seen and kind not in kind.__mro__[:1]):
            return
        names = dict(vars(kind))
        self._remembered.call_back(functools.partial(_put_class, kind, names))
        for value in names.values():
            self.add(value)

    def _add_function(self, x: types.FunctionType) -> None:
        if is_foreign(x):
            return
        for cell in x.__closure__ or ():
            for value in gc.get_referents(cell):
                self._remembered.call_back(functools.partial(_put_cell, cell, value))
                self.add(value)
        for value in (x.__defaults__, x.__kwdefaults__, vars(x)):
            self._remembered.add(value)
        names = _names(x.__code__)
        self._find(x.__globals__, names)
        for module in [v for n in names if _is_module(v := x.__globals__.get(n))]:
            self._find(vars(module), names)

    def _find(self, where: dict[str, Any], names: Iterable[str]) -> None:
        found = self._bindings.setdefault(id(where), (where, {}))[1]
        for name in names:
            if name not in found:
                found[name] = where.get(name, MISSING)
                self.add(found[name])


def _is_module(x: Any) -> bool:
    return isinstance(x, types.ModuleType) and not is_foreign(x)


@functools.lru_cache(maxsize=10_000)
def _names(code: types.CodeType) -> frozenset[str]:
    """Names in a function's code and in that of functions within."""
    inner = (_names(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).difference(vars(builtins)).union(*inner)


def _bind(names: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if names.get(name, MISSING) is not value:
            if value is MISSING:
                del names[name]
            else:
                names[name] = value


def _put_class(kind: type, wanted: dict[str, Any]) -> None:
    for name in vars(kind).keys() - wanted.keys():
        type.__delattr__(kind, name)
    for name, value in wanted.items():
        if vars(kind).get(name, MISSING) is not value:
            type.__setattr__(kind, name, value)


def _put_cell(cell: types.CellType, value: Any) -> None:
    if gc.get_referents(cell) != [value]:
        cell.cell_contents = value


def _clear(cache: Any, before: Any, copies: Mapping[int, Any]) -> None:
    if cache.cache_info().misses == before.misses:
        return
    own = set(map(id, copies.values())) - copies.keys()
    if any(is_symbolic(x) or id(x) in own for x in _held(cache)):
        cache.cache_clear()


def _held(cache: Any) -> Iterator[Any]:
    """What the entries of a cache hold, through containers and objects of users' classes."""
    seen, waiting = set[int](), gc.get_referents(cache)
    while waiting:
        x = waiting.pop()
        if id(x) in seen or isinstance(x, types.FunctionType | types.ModuleType | type):
            continue
        seen.add(id(x))
        yield x
        if isinstance(x, dict | list | tuple | set) or not is_foreign(type(x)):
            waiting += gc.get_referents(x)
