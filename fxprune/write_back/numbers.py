"""Gives a smaller model the numbers of its sizes: of its config, and those that its modules keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fxprune.errors import PlanError
from fxprune.plan import Plan
from fxprune.remark import Remark
from fxprune.verify.check import on_meta
from fxprune.write_back.attempt import Attempt, Trial
from fxprune.write_back.changes import SizeChanges
from fxprune.write_back.choices import Choice, find_choices
from fxprune.write_back.fold import Folds
from fxprune.write_back.further_tests import size_of_named, takes_new_head
from fxprune.write_back.likeness import Sizes, sizes_like, sizes_of
from fxprune.write_back.rebuild import Builder, ComputedBufferError, shapes_of
from fxprune.write_back.settle import Search
from fxprune.write_back.slots import Slot, find_slots
from fxprune.write_back.undecided import undecided

# Names that say what a number is, where no test of the model does: the last resort.
_NAMES = frozenset(
    "channels dim embed_dim embedding_dim head_dim head_hidden_size heads hidden_dim hidden_features hidden_size "
    "in_channels in_features inner_dim intermediate_size nf num_attention_heads num_channels num_features num_heads "
    "num_key_value_heads out_channels out_features width".split()
)


class Numbers:
    """The numbers of one model.

    Args:
        plan: of its program.
        trial: of the model at its new sizes, with the numbers of the old ones, against the smaller program.
        builder: of its class, if it has one.
        folds: what its norms have taken over.
        before: the sizes of the model before.
    """

    def __init__(
        self, plan: Plan, trial: Trial, builder: Builder | None, folds: Folds, before: Sizes
    ) -> None:
        assert plan.program is not None, "it has a smaller program"
        self._model, self._program, self._small = trial.model, plan.program, trial.program
        self._changes, self._builder = SizeChanges(plan, trial.program), builder
        self._folds, self._trial, self._before = folds, trial, before
        self._computed: ComputedBufferError | None = None

    def follow(self, config: Mapping[Slot, Any]) -> list[Remark]:
        """Sets given numbers of the config, and what follows from them.

        Raises:
            PlanError: a model of this config computes something other than the smaller program.
        """
        assert self._builder is not None, "there is a config"
        values = {**config, **self._builder.epsilons(self._folds)}
        self._put_config(self._builder, values)
        attempt = self._trial()
        if attempt.error is not None:
            raise attempt.error
        if not self._can_be_read(self._builder, values):
            raise self._computed or PlanError(
                f"a {type(self._model).__name__} of this config computes something other than the smaller model",
                why="what the class makes of a number of the config is not that of the positions that stay",
                do="leave that number as it is",
            )
        return list(self._other_numbers(self._builder, values))

    def settle(self, *, config_only: bool = False, learning: bool = False) -> list[Remark]:
        """Finds the numbers with which the model computes what the smaller program does, and sets them.

        Args:
            config_only: a class that is built from a config must have one that says the sizes.
            learning: whether there are such numbers is all that is asked: those on which nothing depends are left.

        Raises:
            PlanError: there are none.
        """
        if self._builder is not None and (values := self._from_config(self._builder)) is not None:
            return list(self._other_numbers(self._builder, values))
        if config_only and self._builder is not None:
            if self._computed is not None:
                raise self._computed
            stale = next(self._stale_config())
            raise PlanError(stale.what, where=stale.where, why=stale.why, do=stale.do)
        search = self._search()
        attempt = search.run()
        if attempt.error is not None:
            raise attempt.error
        return [] if learning else [*self._stale_config(), *self._undecided(search, attempt)]

    def _from_config(self, builder: Builder) -> dict[Slot, Any] | None:
        """Sets the numbers of a model built anew from an edited config, where one does it; returns the edits."""
        wanted = shapes_of(self._model)
        found = builder.solve(wanted, self._changes)
        if found is None:
            return None
        epsilons = builder.epsilons(self._folds)
        unseen = builder.unseen(found, wanted, self._changes)
        several = [unseen] if len(unseen) > 1 else []
        inexact = None
        for more in ({}, *({f: v} for f, v in unseen.items()), *several):
            values = {**found, **more, **epsilons}
            if not self._works(builder, values):
                continue
            values = self._least(builder, values, more if len(more) > 1 else {})
            before = self._put_config(builder, values)
            other = {slot.value for slot, _ in self._others(builder, values)}
            if not other:
                return values
            self._put_back(before)
            if other <= set(epsilons.values()):
                inexact = inexact or values
        if inexact is not None:
            self._put_config(builder, inexact)
        return inexact

    def _least(
        self, builder: Builder, values: dict[Slot, Any], more: Iterable[Slot]
    ) -> dict[Slot, Any]:
        """Numbers of a config without those that it can do without: they equal a size by chance."""
        for field in more:
            fewer = {slot: value for slot, value in values.items() if slot != field}
            if self._works(builder, fewer):
                values = fewer
        return values

    def _works(self, builder: Builder, values: dict[Slot, Any]) -> bool:
        """Whether the model computes the same with these numbers in its config, and one that is built from it."""
        if not builder.accepts(values):
            return False
        before = self._put_config(builder, values)
        works = self._trial().ok and self._can_be_read(builder, values)
        self._put_back(before)
        return works

    def _put_back(self, before: Mapping[Slot, Any]) -> None:
        for slot, value in before.items():
            slot.put(self._model, value)

    def _can_be_read(self, builder: Builder, values: dict[Slot, Any]) -> bool:
        """Whether a model that is built from the config and reads the weights computes the same."""
        if on_meta(self._model):
            return True
        try:
            built = builder.reads(self._model, values)
        except ComputedBufferError as error:
            self._computed = error
            return False
        return built is not None and self._trial.of(built)().ok

    def _put_config(self, builder: Builder, values: dict[Slot, Any]) -> dict[Slot, Any]:
        """Sets the fields of the config, and what modules made of them; returns what was there."""
        before: dict[Slot, Any] = {}
        for slot, value in builder.following(values):
            if slot.get(self._model) == slot.value:
                before[slot] = slot.value
                slot.put(self._model, value)
        earlier = {(s.path, s.trail): s.value for s in find_slots(builder.before, float)}
        derived = {
            slot: found
            for slot, found in self._others(builder, values)
            if earlier.get((slot.path, slot.trail)) == found and slot.trail[0] != "config"
        }
        for slot, found in derived.items():
            if slot.value not in values.values():  # the epsilons of norms stay
                before[slot] = found
                slot.put(self._model, slot.value)
        for slot, value in values.items():
            before[slot] = slot.value
            slot.put(self._model, value)
        for slot, buffer in builder.scalars(self._model, values).items():
            before[slot] = slot.get(self._model)
            slot.put(self._model, buffer)
        return before

    def _others(self, builder: Builder, values: dict[Slot, Any]) -> list[tuple[Slot, float]]:
        """Numbers of a model built from the config, and what they are in the model where they differ."""
        built = builder.build(values)
        assert built is not None, "it was built before"
        return [
            (slot, found)
            for slot in find_slots(built, float)
            if isinstance(found := slot.get(self._model), float) and found != slot.value
        ]

    def _other_numbers(self, builder: Builder, values: dict[Slot, Any]) -> Iterator[Remark]:
        """A remark on epsilons that a model built from the config would have otherwise, though it agrees."""
        other = self._others(builder, values)
        if other:
            slot, found = other[0]
            more = f" and {len(other) - 1} more" if len(other) > 1 else ""
            yield Remark(
                "analysis",
                "write-back.config-number",
                f"{slot}{more}",
                f"it is {found:g}, and would be {slot.value:g} in a model built from the config: outputs agree, but "
                "not to the last digit",
                "an average was folded into some norms, whose epsilon changed, and the config has one for all",
                "leave the width of the hidden states as it is where that matters",
            )

    def _stale_config(self) -> Iterator[Remark]:
        if self._builder is not None:
            yield Remark(
                "missed",
                "write-back.config-stale",
                f"{type(self._model).__name__}.config",
                "no config gives the sizes of the smaller model: the config still says the old ones",
                "its fields hold one number where layers now differ, or the class derives a number from a size",
                "load the weights into a model that write_back made; for a config that fits, prune with fits=model",
            )

    def _search(self) -> Search:
        choices = find_choices(find_slots(self._model), self._changes)
        return Search(self._model, [c for c in choices if c.can_be_put(self._model)], self._trial)

    def _undecided(self, search: Search, last: Attempt) -> Iterator[Remark]:
        every = range(len(search.choices))
        verified = {slot: slot.get(self._model) for slot in last.read}
        read = search.read(last)
        left = search.open(lambda: search.attempt(numbers=False).ok, read)
        if left:
            left = search.open(lambda: search.attempt().ok, left)
        left = sorted({*every} - {*read} | {*left})
        if self._builder is not None:  # no config says the sizes: a part of it would only hide that
            search.put({i: 0 for i in left if search.choices[i].slots[0].trail[0] == "config"})
            left = [i for i in left if search.choices[i].slots[0].trail[0] != "config"]
        left = [i for i in left if not self._named(search.choices[i])]
        left.sort(key=lambda i: search.choices[i].name not in _NAMES)
        if left and hasattr(self._model, "reset_classifier"):
            left = search.decide(lambda: takes_new_head(self._model, self._program), left)
        left = self._unlike([search.choices[i] for i in left], left)
        for i in left:
            search.put({i: _by_name(search.choices[i], search, set(every) - set(left))})
        self._keep_running(verified)
        yield from undecided(
            [c for c in (search.choices[i] for i in left) if c.is_as_before(self._model)],
            "write-back.number-undecided",
            _changed,
            "set {0} where your code reads {0}, or declare {0} with fxprune.write_back.register_sizes",
        )

    def _keep_running(self, verified: Mapping[Slot, Any]) -> None:
        """Puts numbers that the model reads back to what they were when it computed the same, if it no longer does."""
        moved = {s: value for s, value in verified.items() if s.get(self._model) != value}
        if moved and not self._trial().ok:
            for slot, value in moved.items():
                slot.put(self._model, value)

    def _unlike(self, choices: Sequence[Choice], places: Sequence[int]) -> list[int]:
        """Sets numbers that were the same as one size in all modules of their class; returns the places of others."""
        if not choices:
            return []
        after, slots = sizes_of(self._model), list(find_slots(self._model))
        left = []
        for choice, place in zip(choices, places, strict=True):
            old = {s.path: s for s in choice.slots}
            one = choice.slots[0]
            alike = [s for s in slots if (s.kind, s.trail) == (one.kind, one.trail)]
            found = sizes_like((old.get(s.path, s) for s in alike), self._before, after)
            for slot, value in found.items():
                slot.put(self._model, value)
            if not found:
                left.append(place)
        return left

    def _named(self, choice: Choice) -> bool:
        """Sets numbers that stand beside the name of a submodule to the size of what that returns."""
        found = [size_of_named(self._model, s, self._program, self._small) for s in choice.slots]
        for slot, value in zip(choice.slots, found, strict=True):
            if value is not None:
                slot.put(self._model, value)
        return all(value is not None for value in found)


def _by_name(choice: Choice, search: Search, decided: set[int]) -> int:
    """The option for a choice that only its name speaks for; 0 where that says nothing, or not which size it is.

    Of several sizes it follows the one that another number of the same modules follows, which was the same before.
    """
    if choice.name not in _NAMES:
        return 0
    if len(choice.options) == 2:
        return 1
    for i in sorted(decided):
        other, chosen = search.choices[i], search.chosen[i]
        same = [s.path for s in other.slots] == [s.path for s in choice.slots]
        if same and chosen and other.options[0] == choice.options[0]:
            values = other.options[chosen]
            return choice.options.index(values) if values in choice.options else 0
    return 0


def _changed(choices: Sequence[Choice]) -> str:
    """The sizes that numbers equal, with what these are now."""
    if len(choices) > 1:
        return "sizes that have changed"
    options = choices[0].options
    sizes = sorted({v for o in options[1:] for v in o} - set(options[0]))
    return f"a size that is now {' or '.join(map(str, sizes[:4]))}"
