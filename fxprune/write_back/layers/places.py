"""Numbers and names in a model that say how many elements its lists have, and which of them one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from fxprune.write_back.changes import prefixes
from fxprune.write_back.choices import Choice
from fxprune.write_back.layers.take_out import Shorter
from fxprune.write_back.slots import Slot, find_slots

# Names of counts, where no test of the model says what a number is: the last resort.
NAMES = frozenset(
    "depth n_blocks n_layer n_layers num_blocks num_hidden_layers num_layers num_stages".split()
)


def place_choices(model: nn.Module, lists: Sequence[Shorter]) -> list[Choice]:
    """Attributes of elements that are the places of these elements, and may follow them.

    Args:
        model: before its lists lose elements.
        lists: that will.
    """
    slots = list(find_slots(model))
    return [c for one in lists for c in _places(slots, one, lists)]


def _places(slots: Sequence[Slot], one: Shorter, lists: Sequence[Shorter]) -> Iterator[Choice]:
    start = f"{one.path}." if one.path else ""
    alike: dict[tuple[str, tuple[Any, ...]], dict[int, Slot]] = {}
    place = {name: i for i, name in enumerate(one.names)}
    for slot in slots:
        name, _, rest = slot.path.removeprefix(start).partition(".")
        if slot.path.startswith(start) and name in place:
            alike.setdefault((rest, slot.trail), {})[place[name]] = slot
    for found in alike.values():
        firsts = {s.value - i for i, s in found.items()}
        if len(firsts) > 1 or len(found) < 2 or (len(found) == 2 and not firsts <= {0, 1}):
            continue
        first = firsts.pop()
        left = {new: found[old] for new, old in enumerate(one.left) if old in found}
        moved = [
            Slot(path, s.kind, s.trail, s.value)
            for s in left.values()
            if (path := new_path(s.path, lists)) is not None
        ]
        if moved:
            today, now = tuple(s.value for s in moved), tuple(first + new for new in left)
            yield Choice(tuple(moved), (today, now))


def count_choices(model: nn.Module, lists: Sequence[Shorter]) -> list[Choice]:
    """Numbers that are the number of elements of a list, in the modules around it, and may follow it."""
    return _choices(model, lists, int, lambda one, _: len(one.left), lambda x: x)


def entry_choices(model: nn.Module, lists: Sequence[Shorter]) -> list[Choice]:
    """Lists of values, one for each element of a list of modules, that may lose those of elements that are gone."""
    return [
        *_choices(model, lists, list, lambda one, x: one.without(x), len),
        *_choices(model, lists, tuple, lambda one, x: tuple(one.without(x)), len),
    ]


def _choices(
    model: nn.Module,
    lists: Sequence[Shorter],
    of: type,
    new: Callable[[Shorter, Any], Any],
    count: Callable[[Any], int],
) -> list[Choice]:
    alike: dict[tuple[str, tuple[Any, ...]], list[tuple[Slot, Any]]] = {}
    for slot in find_slots(model, of):
        for one in lists:
            around = slot.path in prefixes(one.path)
            if around and count(slot.value) == one.length > 1:
                pair = slot, new(one, slot.value)
                alike.setdefault((slot.kind, slot.trail), []).append(pair)
                break
    return [
        Choice(tuple(s for s, _ in pairs), (tuple(s.value for s, _ in pairs), tuple(v for _, v in pairs)))
        for pairs in alike.values()
    ]


def new_path(path: str, lists: Sequence[Shorter]) -> str | None:
    """The path of a module after lists have lost elements; None where it has left with one."""
    found: str | None = path
    for one in lists:
        found = None if found is None else one.new_path(found)
    return found


def rename_mentions(model: nn.Module, lists: Sequence[Shorter]) -> None:
    """Follows elements in lists of entries that name them, as lists of feature maps do: {"module": "blocks.3"}.

    Args:
        model: whose lists have lost elements.
        lists: these lists, inner ones first.
    """
    gone: dict[Slot, set[Any]] = {}
    for slot in list(find_slots(model, str)):
        start = f"{slot.path}." if slot.path else ""
        path = start + slot.value
        if not any(one.path and path.startswith(f"{one.path}.") for one in lists):
            continue
        new = new_path(path, lists)
        depth = next((i for i, key in enumerate(slot.trail) if i and isinstance(key, int)), None)
        if new is not None:
            slot.put(model, new.removeprefix(start))
        elif depth is not None:
            holder = Slot(slot.path, slot.kind, slot.trail[:depth], None)
            gone.setdefault(holder, set()).add(slot.trail[depth])
    for holder, places in gone.items():
        entries = holder.get(model)
        holder.put(model, type(entries)(x for i, x in enumerate(entries) if i not in places))
