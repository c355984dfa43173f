"""What names the code of a model mentions."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from fxprune.stand_in.objects import is_foreign


def reached_names(
    functions: Iterable[Any], methods: Mapping[str, list[Any]] | None = None
) -> set[str]:
    """Returns the names, and texts, in the code of functions and of those that they find by a global name.

    Args:
        functions: where to begin; what is no function of Python, or one of torch or the standard library, is left out.
        methods: functions that are found by a name that is none of a module.
    """
    names, seen, waiting = set[str](), set[Any](), [*functions]
    while waiting:
        function = inspect.unwrap(f) if callable(f := waiting.pop()) else f
        if not isinstance(function, FunctionType) or function in seen or is_foreign(function):
            continue
        seen.add(function)
        found = set().union(*(_mentioned(code) for code in codes_of(function)))
        waiting += [function.__globals__[n] for n in found if n in function.__globals__]
        waiting += [f for n in found - names for f in (methods or {}).get(n, ())]
        names |= found
    return names


def codes_of(function: Any) -> Iterator[CodeType]:
    """Yields the code of a function, or of a static or class method, and that of functions within."""
    found = inspect.unwrap(function) if callable(function) else getattr(function, "__func__", None)
    codes = [c] if isinstance(c := getattr(found, "__code__", None), CodeType) else []
    while codes:
        code = codes.pop()
        yield code
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]


def _mentioned(code: CodeType) -> set[str]:
    return {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))}
