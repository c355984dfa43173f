"""The config of a model whose lists have lost elements: its counts, and its lists with an entry for each layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from fxprune.write_back.layers.places import NAMES
from fxprune.write_back.layers.take_out import Shorter
from fxprune.write_back.rebuild import Builder, Shapes, shapes_of
from fxprune.write_back.slots import Slot

Values = dict[Slot, Any]


class Counts:
    """The config of one class.

    Args:
        builder: of the class.
        lists: that have lost elements.
        replaced: the paths, now, of modules in whose place others stand, and which no config leaves out.
    """

    def __init__(
        self, builder: Builder, lists: Sequence[Shorter], replaced: Collection[str]
    ) -> None:
        self._builder, self._lists, self._replaced = builder, lists, tuple(replaced)

    def solve(self, model: nn.Module) -> Values | None:
        """The values of the config with which the class has the tensors of the model; None where none were found."""
        wanted = shapes_of(model)
        found: Values = {}
        off = self._off(shapes_of(self._builder.before), wanted)
        for _ in self._lists:
            for trial in self._trials(found):
                built = self._builder.build(trial)
                now = None if built is None else self._off(shapes_of(built), wanted)
                if now is not None and now < off:
                    found, off = trial, now
                    break
        return None if off else self._named(found, wanted)

    def _trials(self, found: Values) -> Iterator[Values]:
        """Values with the count of one more list, with and without shorter lists of values."""
        for one in self._lists:
            counts = [f for f in self._builder.fields if f.value == one.length and f not in found]
            entries = dict(self._entries(one))
            moves = [[f] for f in counts] + ([counts] if len(counts) > 1 else [])
            for more in (entries, {}) if entries else ({},):
                for fields in moves:
                    yield {**found, **more, **dict.fromkeys(fields, len(one.left))}

    def _entries(self, one: Shorter) -> Iterator[tuple[Slot, Any]]:
        for slot in self._builder.lists:
            if len(slot.get(self._builder.before)) == one.length:
                kept = one.without(slot.get(self._builder.before))
                yield slot, type(slot.get(self._builder.before))(kept)

    def _named(self, found: Values, wanted: Shapes) -> Values:
        """The values, and other counts that have the name of one and with which the class has the same tensors."""
        for one in self._lists:
            for field in self._builder.fields:
                if field in found or field.value != one.length or field.trail[-1] not in NAMES:
                    continue
                trial = {**found, field: len(one.left)}
                built = self._builder.build(trial)
                if built is not None and not self._off(shapes_of(built), wanted):
                    found = trial
        return found

    def _off(self, shapes: Shapes, wanted: Shapes) -> int:
        """How many tensors differ; those of replaced modules are not counted."""
        differ = self._counted(shapes) ^ self._counted(wanted)
        return len(differ)

    def _counted(self, shapes: Mapping[str, tuple[int, ...]]) -> set[tuple[str, tuple[int, ...]]]:
        return {
            (name, shape)
            for name, shape in shapes.items()
            if not any(name.startswith(f"{p}.") for p in self._replaced)
        }
