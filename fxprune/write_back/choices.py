"""Numbers in a model's modules that may have to change, with what they may become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from fxprune.write_back.changes import SizeChanges
from fxprune.write_back.slots import Slot

_MOST = 24  # options of one choice

Values = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """One attribute of a class: in all modules of the class it follows the same size, or stays.

    Attributes:
        slots: one for each module.
        options: their values; first those of today, then those of sizes that the numbers may repeat, the most
            frequent first.
    """

    slots: tuple[Slot, ...]
    options: tuple[Values, ...]

    @property
    def name(self) -> str:
        """The name of the attribute, or of the key that is nearest to the number."""
        words = [t for t in self.slots[0].trail if isinstance(t, str)]
        return words[-1] if words else ""

    @property
    def first(self) -> int:
        """The option to start with: to follow, where there is one way to."""
        return 1 if len(self.options) == 2 else 0

    def put(self, model: nn.Module, option: int) -> None:
        """Puts the values of an option in the model."""
        for slot, value in zip(self.slots, self.options[option], strict=True):
            slot.put(model, value)

    def is_as_before(self, model: nn.Module) -> bool:
        """Whether the model holds the numbers of today."""
        return all(slot.get(model) == slot.value for slot in self.slots)

    def can_be_put(self, model: nn.Module) -> bool:
        """Whether the model takes other values: a config may be read-only, an attribute may have no setter."""
        try:
            for slot, value in zip(self.slots, self.options[-1], strict=True):
                slot.put(model, value)
        except Exception:
            return False
        finally:
            for slot in self.slots:
                if slot.get(model) != slot.value:
                    slot.put(model, slot.value)
        return True

    def __str__(self) -> str:
        more = f" and {len(self.slots) - 1} more" if len(self.slots) > 1 else ""
        return f"{self.slots[0]} = {self.slots[0].value}{more}"


def find_choices(slots: Iterable[Slot], changes: SizeChanges) -> list[Choice]:
    """The choices that are to be made: numbers that equal a size, in or below their module, that changed."""
    alike: dict[tuple[str, tuple[object, ...]], list[Slot]] = {}
    for slot in slots:
        if changes.lengths(slot.path, slot.value):
            alike.setdefault((slot.kind, slot.trail), []).append(slot)
    return [Choice(tuple(s), _options(s, changes)) for s in alike.values()]


def _options(slots: list[Slot], changes: SizeChanges) -> tuple[Values, ...]:
    """The values that follow one source each; where that has not changed, or has in several ways, a slot stays."""
    today = tuple(s.value for s in slots)
    found: Counter[Values] = Counter()
    sources = [changes.sources(s.path, s.value) for s in slots]
    for source in dict.fromkeys(name for each in sources for name in each):
        values = []
        for slot, each in zip(slots, sources, strict=True):
            news = each.get(source, set())
            values.append(next(iter(news)) if len(news) == 1 else slot.value)
        found[tuple(values)] += 1
    del found[today]
    return (today, *(values for values, _ in found.most_common(_MOST)))
