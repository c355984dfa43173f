"""Numbers and names in a model that say how many elements its lists have, and which of them one is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from torch import nn

from fxprune.write_back.changes import prefixes
from fxprune.write_back.choices import Choice
from fxprune.write_back.layers.take_out import Shorter, lists_around
from fxprune.write_back.slots import Slot, find_slots

# Names of counts, where no test of the model says what a number is: the last resort.
NAMES = frozenset(
    "depth n_blocks n_layer n_layers num_blocks num_hidden_layers num_layers num_stages".split()
)


def place_choices(
    model: nn.Module, lists: Sequence[Shorter], replaced: Collection[str]
) -> list[Choice]:
    """Attributes of elements that are the places of these elements, and may follow them.

    Where each element had one, as the place of its attention in a cache of keys, those that are left are
    numbered through.

    Args:
        model: before its lists lose elements.
        lists: that will.
        replaced: the paths of modules in whose place others will stand.
    """
    slots = list(find_slots(model))
    around = {one.path for one in lists}
    more = [one for one in lists_around(model, replaced) if one.path not in around]
    return [c for one in (*lists, *more) for c in _places(slots, one, lists, replaced)]


def _places(
    slots: Sequence[Slot], one: Shorter, lists: Sequence[Shorter], replaced: Collection[str]
) -> Iterator[Choice]:
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
        stay = {new: found[old] for new, old in enumerate(one.left) if old in found}
        left = {n: s for n, s in stay.items() if replaced_by(s.path, replaced) is None}
        paths = [new_path(s.path, lists) for s in left.values()]
        numbers = range(len(left)) if len(found) == one.length else left
        moved = [
            (Slot(p, s.kind, s.trail, s.value), first + n)
            for p, s, n in zip(paths, left.values(), numbers, strict=True)
            for first in firsts
            if p is not None
        ]
        today, now = tuple(s.value for s, _ in moved), tuple(n for _, n in moved)
        if today != now:
            yield Choice(tuple(s for s, _ in moved), (today, now))


def replaced_by(path: str, replaced: Collection[str]) -> str | None:
    """The path of the replaced module that a module was, or was in."""
    return next((p for p in prefixes(path) if p in replaced), None)


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
            around = slot.path in prefixes(one.path) and not _is_in_entry(slot)
            if around and count(slot.value) == one.length > 1:
                pair = slot, new(one, slot.value)
                alike.setdefault((slot.kind, slot.trail), []).append(pair)
                break
    return [
        Choice(
            tuple(s for s, _ in pairs),
            (tuple(s.value for s, _ in pairs), tuple(v for _, v in pairs)),
        )
        for pairs in alike.values()
    ]


def _is_in_entry(slot: Slot) -> bool:
    """Whether a value stands under a key in an entry of a list, as what is said of one feature map does."""
    kinds = [type(key) for key in slot.trail]
    return int in kinds and str in kinds[kinds.index(int) :]


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
