"""Groups that may have to lose equal shares of their units, because a class has one number for all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain
from math import gcd

from fxprune.analysis.group import Group
from fxprune.write_back.rebuild import Builder, shapes_of

Tie = tuple[Group, ...]
"""Groups that lose equal shares of their units; a single one is free."""


def rows(tie: Tie) -> int:
    """In how many steps a tie can lose its units."""
    return gcd(*(len(g) for g in tie))


def clusters(ties: Sequence[Tie], key: Callable[[Group], Hashable]) -> list[Tie]:
    """Groups of equal length with the same key, together."""
    found: dict[tuple[Hashable, int], list[Group]] = {}
    for (group,) in ties:
        found.setdefault((key(group), len(group)), []).append(group)
    return [tuple(groups) for groups in found.values()]


def by_pattern(group: Group) -> Hashable:
    """The axes that a group cuts, without the numbers of layers in their names.

    Not the name of the group: of those that cut the same first axis, the name says only which one came first.
    """
    return frozenset((re.sub(r"(?<=\.)\d+(?=\.)", "#", m.param), m.axis) for m in group.members)


def by_leaf(group: Group) -> Hashable:
    """The name of a group without the path of its module."""
    return group.name.rpartition(".")[2]


def by_axis(group: Group) -> Hashable:
    """The first axis that a group cuts."""
    member = group.members[0]
    return member.param, member.axis


def ties_of_config(builder: Builder, ties: Sequence[Tie]) -> Iterator[Tie]:
    """Yields ties of ties that the fields of a config suggest: the axes that change where one number is halved.

    Where ties compete for an axis, as whole heads do with channels inside of all heads, those that cut the most axes
    come first, and then those that cut the fewest.

    Args:
        builder: of the class.
        ties: that do not fit alone.
    """
    before = shapes_of(builder.before)
    for field in builder.with_number():
        after = builder.shapes({field: field.value // 2}) if field.value > 1 else None
        if after is None or after.keys() != before.keys():
            continue
        changed = {
            (name, i)
            for name, shape in before.items()
            for i, (old, new) in enumerate(zip(shape, after[name], strict=False))
            if old != new
        }
        mine = [t for t in ties if _axes(t) <= changed]
        for most in (True, False):
            apart = _apart(sorted(mine, key=lambda t: len(t[0].members), reverse=most))
            if len(apart) > 1 and rows(joined := tuple(chain.from_iterable(apart))) > 1:
                yield joined


def _apart(ties: Sequence[Tie]) -> list[Tie]:
    """Ties of which no two cut the same axis, the first ones first."""
    found: list[Tie] = []
    used: set[tuple[str, int]] = set()
    for tie in ties:
        if used.isdisjoint(_axes(tie)):
            found.append(tie)
            used |= _axes(tie)
    return found


def _axes(tie: Tie) -> set[tuple[str, int]]:
    return {(m.param, m.axis) for g in tie for m in g.members}
