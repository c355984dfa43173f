"""Results of analyses, kept for as long as the program they are about lives."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from fxprune.analysis.axes import Axes
from fxprune.analysis.solve import solve
from fxprune.graph.program import Program

T = TypeVar("T")
_known: WeakKeyDictionary[Program, dict[Hashable, Any]] = WeakKeyDictionary()


def remember(program: Program, key: Hashable, work_out: Callable[[], T]) -> T:
    """What was worked out for a program under a key, or what `work_out` gives now."""
    known = _known.setdefault(program, {})
    if key not in known:
        known[key] = work_out()
    return known[key]  # type: ignore[no-any-return]


def hand_on(before: Program, after: Program, names: Iterable[str]) -> None:
    """Keeps the named analyses of one program for the program that was made of it."""
    wanted = set(names)
    kept = {k: v for k, v in _known.get(before, {}).items() if getattr(k, "name", k) in wanted}
    _known.setdefault(after, {}).update(kept)


def solved(program: Program) -> Axes:
    """The labels of a program, worked out once."""
    return remember(program, "solve", lambda: solve(program))
