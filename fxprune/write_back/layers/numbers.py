"""Gives a model whose lists have lost elements its counts, and the places of those that are left."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import nn

from fxprune.remark import Remark
from fxprune.verify.check import on_meta
from fxprune.write_back.attempt import Trial
from fxprune.write_back.choices import Choice
from fxprune.write_back.further_tests import decodes
from fxprune.write_back.layers.config import Counts, Values
from fxprune.write_back.layers.places import (
    NAMES,
    count_choices,
    entry_choices,
    new_path,
    place_choices,
    rename_mentions,
)
from fxprune.write_back.layers.take_out import Shorter
from fxprune.write_back.rebuild import Builder, ComputedBufferError
from fxprune.write_back.settle import Search
from fxprune.write_back.undecided import undecided


class LayerNumbers:
    """The numbers of one model that tell of its lists.

    Args:
        model: before its lists lose elements.
        lists: that will, inner ones first.
        builder: of its class, if it has one.
        replaced: the paths of modules in whose place others will stand.
        decoded: whether the model decodes the same with a cache.
    """

    def __init__(
        self,
        model: nn.Module,
        lists: Sequence[Shorter],
        builder: Builder | None,
        replaced: Collection[str],
        *,
        decoded: bool,
    ) -> None:
        self._model, self._lists, self._builder = model, lists, builder
        self._decoded = decoded
        self._paths = {id(m): p for p, m in model.named_modules()}
        self._places = place_choices(model, lists, replaced)
        self._replaced = [p for path in replaced if (p := new_path(path, lists)) is not None]

    def settle(self, trial: Trial) -> list[Remark]:
        """Finds the numbers with which the model computes what it should, and sets them.

        Args:
            trial: of the model, which has lost the elements.

        Raises:
            FxpruneError: with no numbers that were tried it does.
        """
        rename_mentions(self._model, self._lists)
        remarks = []
        if self._builder is None or not self._lists or not self._configure(self._builder, trial):
            remarks += self._settle_alone(trial)
            if self._builder is not None and self._lists:
                remarks.append(self._stale())
        if self._builder is not None and self._replaced:
            remarks.append(self._without_config(sorted(self._replaced)))
        if self._decoded and not self._decodes(trial):
            remarks.append(self._without_cache())
        return remarks

    def _configure(self, builder: Builder, trial: Trial) -> bool:
        """Lets the config say what there is, and modules follow it; False where that is not found."""
        values = Counts(builder, self._lists, self._replaced).solve(self._model)
        if values is None:
            return False
        shorter = {s: v for s, v in values.items() if type(v) is int}
        for trying in [values] if shorter == values else [values, shorter]:
            undo = self._put(builder, trying)
            if builder.accepts(trying) and self._can_be_read(builder, trying, trial):
                return True
            for slot, value in reversed(undo):
                slot.put(self._model, value)
        return False

    def _settle_alone(self, trial: Trial) -> list[Remark]:
        """Finds the numbers of the modules by trying."""
        counts = self._open_to_change(count_choices(self._model, self._lists))
        entries = self._open_to_change(entry_choices(self._model, self._lists))
        places = self._open_to_change(self._places)
        search = Search(self._model, [*counts, *places], trial)
        if not search.run().ok:
            search = Search(self._model, [*counts, *places, *entries], trial)
            last = search.run()
            if last.error is not None:
                raise last.error
        return list(self._undecided(search, len(counts), trial))

    def _open_to_change(self, choices: Sequence[Choice]) -> list[Choice]:
        """Choices that the model takes; not those of a config from which it is built."""
        own = [c for c in choices if not (self._builder and c.slots[0].trail[0] == "config")]
        return [c for c in own if c.can_be_put(self._model)]

    def _undecided(self, search: Search, counts: int, trial: Trial) -> Iterator[Remark]:
        """Leaves counts on which nothing depends as they are, unless they are called a count."""
        left = search.open(lambda: trial().ok, range(counts))
        for i in left:
            search.put({i: 1 if search.choices[i].name in NAMES else 0})
        yield from undecided(
            [search.choices[i] for i in left if not search.chosen[i]],
            "write-back.count-undecided",
            lambda _: "the number of layers that there were",
            "set {0} where your code reads {0}",
        )

    def _decodes(self, trial: Trial) -> bool:
        """Whether the model decodes with a cache, with some numbers for the places of its layers there."""
        if decodes(self._model, trial.program):
            return True
        before = [(s, s.get(self._model)) for choice in self._places for s in choice.slots]
        for option in (0, 1):
            for choice in self._places:
                choice.put(self._model, option)
            if trial().ok and decodes(self._model, trial.program):
                return True
        for slot, value in before:
            slot.put(self._model, value)
        return False

    def _put(self, builder: Builder, values: Values) -> list[tuple[Any, Any]]:
        """Sets the fields of the config, and what modules made of them; returns the slots and what was there."""
        paths = {p: self._paths.get(id(m), p) for p, m in self._model.named_modules()}
        follow = [
            (slot, value)
            for slot, value in builder.following(values, lambda path: paths.get(path, path))
            if slot.get(self._model) == slot.value
        ]
        places = [
            (slot, value)
            for choice in self._places
            for slot, value in zip(choice.slots, choice.options[1], strict=True)
        ]
        undo = []
        for slot, value in (*follow, *places, *values.items()):
            undo.append((slot, slot.get(self._model)))
            slot.put(self._model, value)
        return undo

    def _can_be_read(self, builder: Builder, values: Values, trial: Trial) -> bool:
        """Whether the model runs, and so does one that is built from the config and reads its weights."""
        if not trial().ok:
            return False
        if self._replaced or on_meta(self._model):
            return True
        try:
            built = builder.reads(self._model, values)
        except ComputedBufferError:
            return False
        return built is not None and trial.of(built)().ok

    def _without_cache(self) -> Remark:
        return Remark(
            "missed",
            "write-back.cache",
            type(self._model).__name__,
            "with a cache of keys and values, the model decodes something else than without",
            "the cache has a place for each layer that the config names, and a layer has no attention any more",
            "pass use_cache=False, or delete whole layers",
        )

    def _stale(self) -> Remark:
        return Remark(
            "missed",
            "write-back.config-stale",
            f"{type(self._model).__name__}.config",
            "no config gives the layers of the smaller model: the config still says the old ones",
            "it has no field with their number, or the class makes other layers of it",
            "load the weights into a model that write_back made",
        )

    def _without_config(self, replaced: Sequence[str]) -> Remark:
        return Remark(
            "missed",
            "write-back.config-stale",
            f"{type(self._model).__name__}.config",
            f"no config leaves out {', '.join(replaced[:4])}{' and others' if len(replaced) > 4 else ''}: "
            "a model that is built from it has them again, with new weights",
            "they are parts of layers of which the rest stays",
            "load the weights into a model that write_back made, or delete whole layers",
        )
