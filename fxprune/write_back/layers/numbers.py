"""Gives a model whose lists have lost elements its counts, and the places of those that are left."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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
from fxprune.write_back.rebuild import Builder
from fxprune.write_back.settle import Search


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
        counts = count_choices(self._model, self._lists)
        entries = entry_choices(self._model, self._lists)
        found = self._search([*self._places, *counts], trial)
        if not found.run().ok:
            found = self._search([*self._places, *counts, *entries], trial)
            last = found.run()
            if last.error is not None:
                raise last.error
        remarks = list(self._undecided(found, trial))
        if self._builder is not None and not self._configure(self._builder, found, trial):
            remarks.append(self._stale())
        elif self._builder is not None and self._replaced:
            remarks.append(self._without_config(sorted(self._replaced)))
        if self._decoded and not self._decodes(found, trial):
            remarks.append(self._without_cache())
        return remarks

    def _decodes(self, search: Search, trial: Trial) -> bool:
        """Whether the model still decodes with a cache, perhaps with the places that there were."""
        if decodes(self._model, trial.program) is not False:
            return True
        before = dict(search.chosen)
        search.put({i: 0 for i, c in enumerate(search.choices) if c in self._places})
        if trial().ok and decodes(self._model, trial.program):
            return True
        search.put(before)
        return False

    def _search(self, choices: Sequence[Choice], trial: Trial) -> Search:
        return Search(self._model, [c for c in choices if c.can_be_put(self._model)], trial)

    def _undecided(self, search: Search, trial: Trial) -> Iterator[Remark]:
        """Leaves counts on which nothing depends as they are, unless they are called a count."""
        counts = [i for i, c in enumerate(search.choices) if c not in self._places]
        for i in search.open(lambda: trial().ok, counts):
            choice = search.choices[i]
            if self._builder is not None and choice.slots[0].trail[0] == "config":
                search.put({i: 0})
                continue
            search.put({i: 1 if choice.name in NAMES else 0})
            if not search.chosen[i]:
                yield _left(choice)

    def _configure(self, builder: Builder, search: Search, trial: Trial) -> bool:
        """Lets the config say what there is; False where none does."""
        if not self._lists:
            return True
        values = Counts(builder, self._lists, self._replaced).solve(self._model)
        if values is None:
            return False
        shorter = {s: v for s, v in values.items() if type(v) is int}
        for trying in [values] if shorter == values else [values, shorter]:
            before = dict(search.chosen)
            search.put(dict.fromkeys(before, 0))
            undo = self._put(builder, trying)
            if builder.accepts(trying) and self._can_be_read(builder, trying, trial):
                return True
            for put_back in reversed(undo):
                put_back[0].put(self._model, put_back[1])
            search.put(before)
        return False

    def _put(self, builder: Builder, values: Values) -> list[tuple[Any, Any]]:
        """Sets the fields of the config, and what modules made of them; returns the slots and what was there."""
        old: Mapping[str, str] = {
            p: self._paths.get(id(m), p) for p, m in self._model.named_modules()
        }
        undo = []
        follow = list(builder.following(values, lambda path: old.get(path, path)))
        for slot, value in [*follow, *values.items()]:
            now = slot.get(self._model)
            if slot in values or now == slot.value:
                undo.append((slot, now))
                slot.put(self._model, value)
        return undo

    def _can_be_read(self, builder: Builder, values: Values, trial: Trial) -> bool:
        """Whether the model runs, and so does one that is built from the config and reads its weights."""
        if not trial().ok:
            return False
        if self._replaced or on_meta(self._model):
            return True
        built = builder.reads(self._model, values)
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


def _left(choice: Choice) -> Remark:
    return Remark(
        "analysis",
        "write-back.count-undecided",
        str(choice.slots[0]),
        f"{choice} was left as it is",
        "it equals the number of layers that there were, and nothing that was tried depends on it",
        "set it where your code reads it",
    )
