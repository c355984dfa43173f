"""A wished architecture: fields of a model's config with new numbers, and the sizes that its class then has."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from fxprune.errors import OptionError
from fxprune.write_back.rebuild import Builder, Shapes, shapes_of
from fxprune.write_back.slots import Slot, find_slots

_NAMED = 24  # fields in one message


class Wish:
    """What a user wants of the config of a smaller model.

    Args:
        model: whose class is built from the config that it holds.
        fields: name of a field -> its new number; fields of a config in a config are written with a dot. Names that the
            config takes for others, as GPT-2 takes `hidden_size` for `n_embd`, will do.

    Attributes:
        builder: of the class.
        depths: fields that are numbers of layers, and their new numbers.
        values: the other fields and their new numbers.
        widths: the same, by the names that were given.
        shapes: the sizes of every tensor of the class with these.

    Raises:
        OptionError: the class is not built from a config; a field is unknown, holds no number of a size, grows, or
            changes nothing; the class refuses the numbers.
    """

    def __init__(self, model: nn.Module, fields: Mapping[str, int]) -> None:
        builder = Builder.of(model)
        if builder is None:
            raise OptionError(
                f"there is no config to edit: {type(model).__name__} is not built from one",
                where="to=",
                why="its constructor has to take the object in `model.config`, and to make tensors of the same sizes",
                do="choose keep=..., or a plan of your own",
            )
        self.builder = builder
        self._names = {".".join(map(str, s.trail[1:])): s for s in builder.fields}
        named = {name: self._slot(name) for name in _given(fields)}
        values = {slot: _number(name, fields[name]) for name, slot in named.items()}
        for slot, value in values.items():
            if slot.value is not None and value > slot.value:
                raise OptionError(
                    f"{name_of(slot)} cannot grow from {slot.value} to {value}",
                    where="to=",
                    do=f"choose a number from 1 to {slot.value}",
                )
        self.depths = {s: n for s, n in values.items() if self._is_depth(s, n)}
        self.values = {s: n for s, n in values.items() if s not in self.depths}
        self.widths = {name: self.values[s] for name, s in named.items() if s in self.values}
        self.shapes = self._built()
        for slot in self.values:
            self._check_effect(slot)

    @property
    def changed(self) -> dict[Slot, int]:
        """The fields that get another number than they have."""
        return {slot: value for slot, value in self.values.items() if value != slot.value}

    def fields_of(self, tensor: str, axis: int) -> str:
        """The names of the fields that the length of an axis follows."""
        before = shapes_of(self.builder.before)[tensor][axis]
        found = []
        for slot, value in self.changed.items():
            shape = self.builder.shapes({slot: value}) or {}
            if tensor in shape and shape[tensor][axis] != before:
                found.append(slot)
        return ", ".join(f"{name_of(s)}={self.values[s]}" for s in found or self.changed)

    def agrees(self, old: int, new: int) -> int:
        """1 where a field goes from one number to another, -1 where one with the first number stays, else 0."""
        if any(slot.value == old and value == new for slot, value in self.values.items()):
            return 1
        stay = (s for s in self.builder.fields if self.values.get(s, s.value) == old == s.value)
        return -1 if any(True for _ in stay) else 0

    def _is_depth(self, slot: Slot, value: int) -> bool:
        """Whether the class with this number has fewer tensors, and none of another size."""
        before, after = shapes_of(self.builder.before), self.builder.shapes({slot: value})
        fewer = after is not None and after.keys() < before.keys()
        return fewer and after is not None and all(before[n] == x for n, x in after.items())

    def _slot(self, name: str) -> Slot:
        """The field of a name, or of what the config takes it for."""
        if name in self._names:
            return self._names[name]
        aliased = self._behind(name)
        if aliased is not None:
            return aliased
        numbers = [n for n, s in self._names.items() if s.value is not None]
        near = get_close_matches(name, self._names, 1)
        raise OptionError(
            f"the config has no field {name!r} with a whole number",
            where="to=",
            why=f"those of {type(self.builder.config).__name__} are {', '.join(numbers[:_NAMED])}",
            do=f"did you mean {near[0]!r}?" if near else "choose one of these",
        )

    def _behind(self, name: str) -> Slot | None:
        """The field that changes where another name is set."""
        config = copy.deepcopy(self.builder.config)
        owner, _, last = name.rpartition(".")
        try:
            for step in filter(None, owner.split(".")):
                config = getattr(config, step)
            old: Any = getattr(config, last)
            setattr(config, last, -1)
        except Exception:
            return None
        for path, slot in self._names.items():
            prefix, _, field = path.rpartition(".")
            if prefix == owner and slot.value == old and vars(config).get(field) == -1:
                return slot
        return None

    def _built(self) -> Shapes:
        """The sizes of the class with the new numbers."""
        built = self.builder.build(self.values)
        refusal = self.builder.refusal(self.values)
        if built is None or refusal:
            raise OptionError(
                f"there is no {self._words()}: the class refuses it",
                where="to=",
                why=refusal,
                do="choose numbers that fit each other, such as a hidden size that the number of heads divides",
            )
        before, after = shapes_of(self.builder.before), shapes_of(built)
        for name, shape in before.items():
            if name in after and len(after[name]) == len(shape):
                grown = [
                    i for i, (a, b) in enumerate(zip(shape, after[name], strict=True)) if b > a
                ]
                if grown:
                    raise OptionError(
                        f"with {self._words()}, a tensor grows",
                        where=f"{name}, axis {grown[0]}",
                        why=f"from {shape[grown[0]]} to {after[name][grown[0]]}",
                        do="leave the numbers out that make it grow, or name the others that it depends on",
                    )
        other = sorted(set(before) ^ set(after)) or [
            name for name, shape in before.items() if len(after[name]) != len(shape)
        ]
        if other:
            self._refuse_others(other)
        return after

    def _refuse_others(self, names: list[str]) -> None:
        """Refuses numbers with which the class has other tensors, and names the field that is to blame."""
        before = set(shapes_of(self.builder.before))
        for slot, value in self.changed.items():
            shapes = self.builder.shapes({slot: value})
            if shapes is not None and set(shapes) != before:
                raise OptionError(
                    f"with {name_of(slot)}={value}, the class has other tensors, not only smaller ones",
                    where="to=",
                    why=", ".join(names[:3]),
                    do="name the fields that belong to it too, those with the same number first",
                )
        raise OptionError(
            f"with {self._words()}, the class has other tensors, not only smaller ones",
            where="to=",
            why=", ".join(names[:3]),
            do="choose fields that are sizes",
        )

    def _check_effect(self, slot: Slot) -> None:
        """Refuses a field without which the class would be the same."""
        value = self.values[slot]
        if value == slot.value:
            return
        ours = self.builder.build(self.values)
        without = self.builder.build({s: v for s, v in self.values.items() if s != slot})
        if ours is None or without is None or shapes_of(ours) != shapes_of(without):
            return
        if _numbers(ours) == _numbers(without):
            raise OptionError(
                f"{name_of(slot)} changes nothing in {type(ours).__name__}",
                where="to=",
                why="the class is built the same with it and without it",
                do=f"leave {name_of(slot)} out",
            )

    def _words(self) -> str:
        return ", ".join(f"{name_of(s)}={v}" for s, v in self.values.items())


def _given(fields: Any) -> Mapping[str, Any]:
    if isinstance(fields, Mapping) and fields and all(isinstance(n, str) for n in fields):
        return fields
    raise OptionError(
        f"to={fields!r} names no fields of a config",
        do='write it as to={"intermediate_size": 2048, "hidden_size": 1536}',
    )


def _number(name: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise OptionError(
        f"{name}={value!r} is no size",
        where="to=",
        do=f"choose a whole number from 1, for example {name}=64",
    )


def name_of(slot: Slot) -> str:
    """The name of a field, with dots between the config and one in it."""
    return ".".join(map(str, slot.trail[1:]))


def _numbers(model: nn.Module) -> dict[tuple[str, Any], Any]:
    """What the modules of a model have made of the numbers of the config."""
    found = {}
    for kind in (int, float):
        for slot in find_slots(model, kind):
            if slot.trail[0] != "config":
                found[slot.path, slot.trail] = slot.value
    return found
