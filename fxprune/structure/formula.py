"""Monotone Boolean formulas over independent gates, and the probability that a formula is true.

A formula is a conjunction: a frozenset of factors. A factor is either the number of a gate, which is
true if the gate is open, or a disjunction: a frozenset of formulas. The condition under which a part of
a network is needed has this form: gates in series are a conjunction, parallel branches a disjunction.
Formulas are never expanded, so that the formula of a chain of parallel branches grows linearly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import torch

Tensor = torch.Tensor
Factor = Any  # int | frozenset[Formula]; the type is recursive
Formula = frozenset[Factor]

ALWAYS: Formula = frozenset()
NEVER: Formula = frozenset((frozenset(),))


def gate(number: int) -> Formula:
    """Returns the formula that is true if a gate is open."""
    return frozenset((number,))


def either(formulas: Iterable[Formula]) -> Formula:
    """Returns the disjunction of formulas; their common factors are factored out."""
    given = {f for f in formulas if f != NEVER}
    least = [f for f in given if not any(g < f for g in given)]
    if not least:
        return NEVER
    common = reduce(frozenset.intersection, least)
    return common if len(least) == 1 else common | {frozenset(f - common for f in least)}


def both(*formulas: Formula) -> Formula:
    """Returns the conjunction of formulas; `a and (a or b)` is simplified to `a`."""
    found = frozenset().union(*formulas)
    if found >= NEVER:
        return NEVER
    known = frozenset(f for f in found if isinstance(f, int))
    return frozenset(f for f in found if isinstance(f, int) or not any(a <= known for a in f))


def assume(formula: Formula, number: int, *, is_open: bool) -> Formula:
    """Returns the formula given that a gate is open, or closed."""
    parts: list[Formula] = []
    for factor in formula:
        if not isinstance(factor, int):
            parts.append(either(assume(f, number, is_open=is_open) for f in factor))
        elif factor != number:
            parts.append(gate(factor))
        elif not is_open:
            return NEVER
    return both(*parts)


@lru_cache(maxsize=4096)
def support(formula: Formula) -> frozenset[int]:
    """Returns the gates that a formula depends on."""
    found: set[int] = set()
    for factor in formula:
        found.update((factor,) if isinstance(factor, int) else support(frozenset().union(*factor)))
    return frozenset(found)


@dataclass(frozen=True)
class _Atom:
    """An elementary probability: `1 - prod(1 - p)` over alternatives, or a case distinction by one gate.

    Attributes:
        rows: the places of the atoms of each alternative; with `by`, those of the formula with that gate
            open, then closed.
        by: the gate, or None.
    """

    rows: tuple[tuple[int, ...], ...]
    by: int | None = None


class Chances:
    """The probabilities of formulas whose gates are open independently of each other.

    Factors that share no gate are independent, so that their probabilities multiply; for alternatives, the
    probabilities of the opposite do. If parts share gates, one such gate is assumed open and closed in turn
    (Shannon, "The synthesis of two-terminal switching circuits", 1949). This is exact, and exponential only
    in the number of gates that such parts share.

    Args:
        formulas: the formulas whose probabilities are wanted.
        n_gates: the number of gates, 0 to n_gates - 1.
    """

    def __init__(self, formulas: Sequence[Formula], n_gates: int) -> None:
        self._n = n_gates
        self._atoms: list[_Atom] = []
        self._place: dict[Any, int] = {}
        rows = [self._row(f) for f in formulas]
        wide = max(map(len, rows), default=0)
        # A row is filled up with the atom that is always 1.
        padded = [[*row, *[-1] * (wide - len(row))] for row in rows]
        self._table = torch.tensor(padded, dtype=torch.int64).reshape(len(rows), wide)

    def __call__(self, opened: Tensor) -> Tensor:
        """Returns the probability of each formula.

        Args:
            opened: the probability that each gate is open, `[n_gates]`.

        Returns:
            The probabilities `[formulas]`, differentiable.
        """
        one = opened.new_ones(())
        known = list(opened.unbind()) if self._atoms else []
        for atom in self._atoms:
            known.append(_chance(atom, known, one))
        values = torch.cat([torch.stack(known) if known else opened, one[None]])
        return values[self._table].prod(1)

    def _row(self, formula: Formula) -> tuple[int, ...]:
        """Returns the atoms whose product is the probability of a formula."""
        return tuple(self._at(part) for part in _independent(formula))

    def _at(self, part: Formula) -> int:
        """Returns the place of the atom of a formula that has no independent parts."""
        if part not in self._place:
            (first, *more) = part
            if not more and isinstance(first, int):
                return first
            atom = self._choice(part) if more or _entangled(first) else self._union(first)
            self._place[part] = self._n + len(self._atoms)
            self._atoms.append(atom)
        return self._place[part]

    def _union(self, alternatives: Iterable[Formula]) -> _Atom:
        return _Atom(tuple(self._row(f) for f in alternatives))

    def _choice(self, formula: Formula) -> _Atom:
        """Splits a formula by the gate that most of its parts depend on."""
        parts = [frozenset((f,)) for f in formula] if len(formula) > 1 else next(iter(formula))
        asked = Counter(number for part in parts for number in support(part))
        by = min(asked, key=lambda number: (-asked[number], number))
        rows = (self._row(assume(formula, by, is_open=is_open)) for is_open in (True, False))
        return _Atom(tuple(rows), by)


def _chance(atom: _Atom, known: Sequence[Tensor], one: Tensor) -> Tensor:
    each = [reduce(torch.mul, (known[i] for i in row), one) for row in atom.rows]
    if atom.by is None:
        return 1 - reduce(torch.mul, (1 - p for p in each), one)
    chance = known[atom.by]
    return chance * each[0] + (1 - chance) * each[1]


def _entangled(alternatives: Iterable[Formula]) -> bool:
    """Returns whether two of the alternatives depend on the same gate."""
    asked = [support(f) for f in alternatives]
    return sum(map(len, asked)) > len(frozenset().union(*asked))


def _independent(formula: Formula) -> list[Formula]:
    """Splits a formula into parts that depend on disjoint sets of gates."""
    parts: list[tuple[frozenset[int], Formula]] = []
    for factor in formula:
        asked, part = support(frozenset((factor,))), frozenset((factor,))
        for other in [p for p in parts if p[0] & asked]:
            parts.remove(other)
            asked, part = asked | other[0], part | other[1]
        parts.append((asked, part))
    return [part for _, part in parts]
