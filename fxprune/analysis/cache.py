"""Results of analyses, kept for as long as the program they are about lives, for each of its modes.

The mode is the one thing of a program that changes in place. Batch norm uses the statistics of the batch in train
mode, so that other removals change them, and it is affine in eval mode only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from fxprune.analysis.axes import Axes
from fxprune.analysis.solve import solve
from fxprune.graph.program import Program

T = TypeVar("T")
_known: WeakKeyDictionary[Program, dict[tuple[bool, Hashable], Any]] = WeakKeyDictionary()


def remember(program: Program, key: Hashable, work_out: Callable[[], T]) -> T:
    """What was worked out for a program in its present mode under a key, or what `work_out` gives now."""
    known, mode_and_key = _known.setdefault(program, {}), (program.training, key)
    if mode_and_key not in known:
        known[mode_and_key] = work_out()
    return known[mode_and_key]  # type: ignore[no-any-return]


def hand_on(before: Program, after: Program, names: Iterable[str]) -> None:
    """Keeps the named analyses of one program for the program that was made of it."""
    wanted = set(names)
    found = _known.get(before, {})
    kept = {(mode, k): x for (mode, k), x in found.items() if getattr(k, "name", k) in wanted}
    _known.setdefault(after, {}).update(kept)


def solved(program: Program) -> Axes:
    """The labels of a program in its present mode, worked out once."""
    return remember(program, "solve", lambda: solve(program))


def with_free_outputs(program: Program) -> Program:
    """The same program, of which a plan may make the outputs narrower too."""
    free = replace(program)
    remember(free, "solve", lambda: solve(free, freeze_outputs=False))
    return free
