"""Decides, by trying, which numbers of a model repeat sizes that have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from fxprune.write_back.attempt import Attempt, Trial
from fxprune.write_back.choices import Choice
from fxprune.write_back.slots import Slot

Options = dict[int, int]
"""Choice, by its place -> option."""


class Search:
    """Goes through choices, one after the other, and keeps what lets the model run further.

    Args:
        model: whose numbers are chosen.
        choices: to be made.
        trial: of the model.
    """

    def __init__(self, model: nn.Module, choices: Sequence[Choice], trial: Trial) -> None:
        self._model, self.choices, self._trial = model, choices, trial
        self._failed: list[tuple[dict[Slot, int], Attempt]] = []
        self.chosen: Options = dict.fromkeys(range(len(choices)), 0)

    def run(self) -> Attempt:
        """Tries until all is right or no single change brings the model further; returns the last attempt.

        It starts twice: with every number that may follow one size only following it, and with all as they are.
        """
        best = Attempt(-1, 0, None)
        for start in (
            {i: c.first for i, c in enumerate(self.choices)},
            dict.fromkeys(self.chosen, 0),
        ):
            self.put(start)
            last = self._climb()
            if last.ok:
                return last
            best = last if last.beats(best) else best
        return best

    def _climb(self) -> Attempt:
        last = self._without_coincidences(self.attempt())
        better = True
        while better and not last.ok:
            better = False
            for move in self._moves():
                if not any(self._is_read(i, last) for i in move):
                    continue
                before = {i: self.chosen[i] for i in move}
                self.put(move)
                now = self.attempt()
                if now.beats(last):
                    last, better = self._without_coincidences(now), True
                else:
                    self.put(before)
                if last.ok:
                    break
        return last

    def _without_coincidences(self, last: Attempt) -> Attempt:
        """Where the model runs and is wrong, another attempt without what it runs without: it may follow by chance."""
        if last.stage != 1:
            return last
        followed = {i: self.chosen[i] for i in self.read(last) if self.chosen[i]}
        needless: Options = {}
        for i, option in followed.items():
            self.put({i: 0})
            if self.attempt(numbers=False).ok:
                needless[i] = 0
            self.put({i: option})
        if not needless:
            return last
        self.put(needless)
        now = self.attempt()
        if not now.ok:
            self.put({i: followed[i] for i in needless})
        return now if now.ok else last

    def _moves(self) -> list[Options]:
        """Other options of single choices, then of several that one attribute holds.

        Of a pair of equal shifts, all change that can only change in one way; of the sizes of the parts of a split,
        all that can become the same.
        """
        single: list[Options] = [
            {i: o}
            for i, c in enumerate(self.choices)
            for o in range(len(c.options))
            if o != self.chosen[i]
        ]
        held: dict[tuple[str, Any], list[int]] = {}
        for i, c in enumerate(self.choices):
            if len(c.slots[0].trail) > 1:
                held.setdefault((c.slots[0].kind, c.slots[0].trail[0]), []).append(i)
        several = [move for places in held.values() for move in self._together(places)]
        return [*single, *(m for m in several if len(m) > 1)]

    def _together(self, places: Sequence[int]) -> Iterator[Options]:
        """Other options of choices that one attribute holds."""
        either = [i for i in places if len(self.choices[i].options) == 2]
        yield {i: 1 - self.chosen[i] for i in either}
        options = {i: self.choices[i].options for i in places}
        for values in dict.fromkeys(v for each in options.values() for v in each):
            same = {i: o.index(values) for i, o in options.items() if values in o}
            yield {i: o for i, o in same.items() if o != self.chosen[i]}

    def read(self, last: Attempt) -> list[int]:
        """The choices among whose numbers the code of the model read one in an attempt."""
        return [i for i in range(len(self.choices)) if self._is_read(i, last)]

    def attempt(self, *, numbers: bool = True) -> Attempt:
        """Tries the model as it is; not again where the numbers that its code read have failed before.

        Args:
            numbers: see `Trial`.
        """
        values = {
            slot: value
            for i, choice in enumerate(self.choices)
            for slot, value in zip(choice.slots, choice.options[self.chosen[i]], strict=True)
        }
        for read, failed in self._failed:
            if all(values[slot] == value for slot, value in read.items()):
                return failed
        found = self._trial(numbers=numbers, watched=list(values))
        if not found.stage:
            self._failed.append(({slot: values[slot] for slot in found.read}, found))
        return found

    def _is_read(self, i: int, attempt: Attempt) -> bool:
        """Whether the code of the model read one of the numbers of a choice."""
        return not attempt.read.isdisjoint(self.choices[i].slots)

    def put(self, options: Options) -> None:
        """Puts options in the model."""
        for i, option in options.items():
            self.choices[i].put(self._model, option)
            self.chosen[i] = option

    def open(self, works: Callable[[], bool], among: Sequence[int]) -> list[int]:
        """The choices among some that a test of the model does not decide: it passes with another option too."""
        before = {i: self.chosen[i] for i in among}
        joint = {i: 1 if self.chosen[i] == 0 else 0 for i in among}
        passed = bool(among) and self._passes(joint, works)
        self.put(before)
        if passed:
            return list(among)
        left = []
        for i in among:
            kept = self.chosen[i]
            others = [o for o in range(len(self.choices[i].options)) if o != kept]
            if any(self._passes({i: o}, works) for o in others):
                left.append(i)
            self.put({i: kept})
        return left

    def decide(self, works: Callable[[], bool], among: Sequence[int]) -> list[int]:
        """Lets a further test of the model decide among choices; returns those that it does not decide.

        Where the test fails, single choices are changed until it passes; where none helps, it decides nothing.
        """
        if works():
            return self.open(works, among)
        repaired = self._repair(works, among)
        if repaired is None:
            return list(among)
        return self.open(works, [i for i in among if i != repaired])

    def _repair(self, works: Callable[[], bool], among: Sequence[int]) -> int | None:
        """The choice that makes a test pass, which is then made; None where there is no such one."""
        for i in among:
            kept = self.chosen[i]
            for option in range(len(self.choices[i].options)):
                if option != kept and self._passes({i: option}, works):
                    return i
            self.put({i: kept})
        return None

    def _passes(self, options: Options, works: Callable[[], bool]) -> bool:
        self.put(options)
        return works()
