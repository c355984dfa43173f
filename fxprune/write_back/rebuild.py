"""Builds a class anew from an edited config, without data, to find the config of a smaller model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from math import inf, log
from typing import Any

import torch
from torch import nn

from fxprune.capture.failure import first_line
from fxprune.errors import PlanError
from fxprune.graph.program import named_tensors
from fxprune.process.state import undisturbed
from fxprune.verify.check import on_meta
from fxprune.write_back.changes import SizeChanges
from fxprune.write_back.fold import Folds
from fxprune.write_back.slots import Slot, find_slots, is_config

Shapes = Mapping[str, tuple[int, ...]]
ROUNDS = 4


def shapes_of(model: nn.Module) -> Shapes:
    """The sizes of every parameter and buffer, by name."""
    return {name: tuple(t.shape) for name, t in named_tensors(model).items()}


class ComputedBufferError(PlanError):
    """A class computes a buffer from its config, and no config gives it the numbers that it has to keep.

    Args:
        kind: the class.
        buffer: the name of the buffer.
        values: the numbers of the config.
    """

    def __init__(self, kind: type[nn.Module], buffer: str, values: Mapping[Slot, Any]) -> None:
        numbers = ", ".join(f"{s.trail[-1]}={v}" for s, v in values.items())
        super().__init__(
            f"with {numbers}, {kind.__name__} has another {buffer} than the smaller model",
            where=buffer,
            why="the class computes it from the config, and no config gives it the numbers that have to stay, such as "
            "the frequencies of those rotary positions that are kept",
            do="leave that number as it is, or use the smaller program (fp.shrink)",
        )


class Builder:
    """A class that can be built from the config that a model of it holds, as models of transformers can.

    Args:
        model: whose constructor takes the object in its attribute `config`.

    Attributes:
        before: a model of the same sizes, on the meta device, that was built from its config.
        fields: the fields of the config that hold a whole number or nothing, as slots of the model.
        lists: those that hold a list or tuple; their slots have no value.
    """

    def __init__(self, model: nn.Module, before: nn.Module) -> None:
        self._kind = type(model)
        self.config = copy.deepcopy(model.config)
        self.before = before
        self.fields = list(_fields(self.config))
        held = (s for of in (list, tuple) for s in find_slots(_Holding(self.config), of))
        self.lists = [replace(s, value=None) for s in held]
        self._known: dict[frozenset[tuple[Slot, Any]], Shapes | None] = {}

    @classmethod
    def of(cls, model: nn.Module) -> Builder | None:
        """The builder of a model, where building it anew gives tensors of the same sizes; else None."""
        if not is_config(getattr(model, "config", None)):
            return None
        before = _build(type(model), model.config, {})
        if before is None or shapes_of(before) != shapes_of(model):
            return None
        return cls(model, before)

    def build(self, values: Mapping[Slot, Any]) -> nn.Module | None:
        """A model on the meta device, of the config with these numbers in it; None where the class refuses them."""
        return _build(self._kind, self.config, values)

    def build_from(self, config: Any, device: str) -> nn.Module:
        """A model of a config of one's own."""
        return _construct(self._kind, config, {}, device)

    def shapes(self, values: Mapping[Slot, Any]) -> Shapes | None:
        """The sizes of a model of the config with these numbers in it; each is built once."""
        key = frozenset(values.items())
        if key not in self._known:
            built = self.build(values)
            self._known[key] = None if built is None else shapes_of(built)
        return self._known[key]

    def refusal(self, values: Mapping[Slot, Any]) -> str:
        """Why the class refuses a config with these numbers; "" where it does not."""
        try:
            _construct(self._kind, self.config, values, "meta")
        except Exception as error:
            return f"{type(error).__name__}: {first_line(error)}"
        return "" if self.accepts(values) else "the config fails its own checks"

    def solve(self, wanted: Shapes, changes: SizeChanges) -> dict[Slot, int] | None:
        """The numbers of the config that give these sizes; None where none were found.

        One field after the other gets the number that brings the sizes nearest to the wanted ones, beside the numbers
        found so far or in the place of one of them, until they are these: where a width is heads times head size, the
        first field that makes the width right may be the wrong one. Fields that hold nothing come last: a default may
        follow from other fields.
        """
        found: dict[Slot, int] = {}
        shapes = shapes_of(self.before)
        off = _distance(shapes, wanted)
        for fields in (self.with_number(), self.fields):
            for _ in range(ROUNDS):
                last = off
                for moved in _moves(fields):
                    for value in _candidates(moved[0], changes, shapes, wanted):
                        for trial in _trials(found, dict.fromkeys(moved, value)):
                            built = self.shapes(trial)
                            now = inf if built is None else _distance(built, wanted)
                            if built is not None and now < off - 1e-9:
                                found, off, shapes = trial, now, built
                            if not off:
                                return found
                if off == last:
                    break
        return None

    def following(
        self, values: Mapping[Slot, Any], old: Callable[[str], str] = str
    ) -> Iterator[tuple[Slot, int]]:
        """Yields the slots of modules that follow the config, with their numbers before, and their new numbers.

        Args:
            values: numbers of the config with which the class can be built.
            old: the path before of a module of the new model.
        """
        after = self.build(values)
        assert after is not None, "it was built before"
        before = {(s.path, s.trail): s.value for s in find_slots(self.before)}
        for slot in find_slots(after):
            number = before.get((old(slot.path), slot.trail))
            if number is not None and number != slot.value and slot.trail[0] != "config":
                yield replace(slot, value=number), slot.value

    def accepts(self, values: Mapping[Slot, Any]) -> bool:
        """Whether the config with these numbers passes the checks that its own class makes when it is saved."""
        validate = getattr(edited(self.config, values), "validate", None)
        try:
            if callable(validate):
                validate()
        except Exception:
            return False
        return True

    def epsilons(self, folds: Folds) -> dict[Slot, float]:
        """The fields of the config that have the numbers that norms had before an average was folded into them."""
        before = {
            self.before.get_submodule(f.path).__dict__.get(name): value
            for f in folds
            for name, value in f.numbers.items()
        }
        fields = find_slots(_Holding(self.config), float)
        return {s: before[s.value] for s in fields if s.value in before}

    def reads(self, model: nn.Module, values: Mapping[Slot, Any]) -> nn.Module | None:
        """A model built from the config with these numbers that has read the state of another; None where it cannot.

        Single numbers in buffers that no state holds, as Gemma's scale of its embeddings, are those of the class.

        Raises:
            ComputedBufferError: it has other numbers in another buffer that no state holds.
        """
        built = _build(self._kind, self.config, values, device="cpu")
        if built is None:
            return None
        try:
            built.to(next(iter(named_tensors(model).values())).dtype)
            built.to(next(iter(model.buffers()), torch.zeros(0)).device)
            built.load_state_dict(model.state_dict())
        except RuntimeError:
            return None
        theirs = dict(model.named_buffers())
        for name, x in built.named_buffers():
            alike = x.shape == theirs[name].shape
            if not alike or not (is_scalar(x) or torch.equal(x, theirs[name])):
                raise ComputedBufferError(self._kind, name, values)
        return built.train(model.training)

    def scalars(self, model: nn.Module, values: Mapping[Slot, Any]) -> dict[Slot, torch.Tensor]:
        """The buffers of single numbers that no state holds, as the class computes them from these numbers."""
        kept = model.state_dict().keys()
        names = [n for n, x in model.named_buffers() if is_scalar(x) and n not in kept]
        if not names or on_meta(model):
            return {}
        built = _build(self._kind, self.config, values, device="cpu")
        found = {} if built is None else dict(built.named_buffers())
        slots = {}
        for name in names:
            if name in found:
                path, _, last = name.rpartition(".")
                old = model.get_buffer(name)
                slots[Slot(path, "", (last,), None)] = found[name].to(old)
        return slots

    def unseen(
        self, found: Mapping[Slot, int], wanted: Shapes, changes: SizeChanges
    ) -> dict[Slot, int]:
        """Fields that may follow a size that has changed and that no tensor shows, such as a number of heads."""
        more: dict[Slot, int] = {}
        for field in self.with_number():
            for value in changes.lengths("", field.value):
                if found.get(field) == value:
                    continue
                if self.shapes({**found, **more, field: value}) == wanted:
                    more[field] = value
                    break
        return more

    def with_number(self) -> list[Slot]:
        """The fields that hold a number."""
        return [f for f in self.fields if f.value is not None]


def _moves(fields: list[Slot]) -> Iterator[list[Slot]]:
    """The fields one by one, then those of equal numbers together: one may be refused without the other."""
    yield from ([field] for field in fields)
    alike: dict[int, list[Slot]] = {}
    for field in fields:
        if field.value is not None:
            alike.setdefault(field.value, []).append(field)
    yield from (several for several in alike.values() if len(several) > 1)


def _trials(found: dict[Slot, int], new: dict[Slot, int]) -> Iterator[dict[Slot, int]]:
    """Numbers of fields with new ones beside them, and then in the place of each one."""
    yield {**found, **new}
    for other in [s for s in found if s not in new]:
        yield {**{s: v for s, v in found.items() if s != other}, **new}


def _candidates(field: Slot, changes: SizeChanges, found: Shapes, wanted: Shapes) -> Iterable[int]:
    """The numbers that a field may take: of sizes that were the same; for a field without one, of those still wrong."""
    if field.value is not None:
        return changes.lengths("", field.value)
    pairs = [(a, b) for name in found for a, b in zip(found[name], wanted[name], strict=True)]
    return sorted({b for a, b in pairs if a != b})


def is_scalar(buffer: torch.Tensor) -> bool:
    """Whether a buffer holds a single number."""
    return buffer.dim() == 0 and buffer.is_floating_point()


def edited(config: Any, values: Mapping[Slot, Any]) -> Any:
    """A copy of a config with other numbers in it."""
    new = _Holding(copy.deepcopy(config))
    for slot, value in values.items():
        slot.put(new, value)
    return new.config


class _Holding(nn.Module):
    """A model with a config and nothing else."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


def _fields(config: Any) -> Iterator[Slot]:
    yield from find_slots(_Holding(config))
    for name, value in vars(config).items():
        if value is None and not name.startswith("_"):
            yield Slot("", "", ("config", name), value)


def _build(
    kind: Callable[[Any], nn.Module],
    config: Any,
    values: Mapping[Slot, Any],
    device: str = "meta",
) -> nn.Module | None:
    """A model without data; None where its class or the config refuses the numbers, for whatever reason."""
    try:
        return _construct(kind, config, values, device)
    except Exception:
        return None


def _construct(
    kind: Callable[[Any], nn.Module], config: Any, values: Mapping[Slot, Any], device: str
) -> nn.Module:
    with undisturbed(), torch.device(device):
        return kind(edited(config, values))


def _distance(found: Shapes, wanted: Shapes) -> float:
    """How far sizes are from others: 0 where they are the same, infinite where the tensors are not."""
    if found.keys() != wanted.keys():
        return inf
    total = 0.0
    for name, shape in found.items():
        if len(shape) != len(wanted[name]):
            return inf
        total += sum(abs(log((a + 1) / (b + 1))) for a, b in zip(shape, wanted[name], strict=True))
    return total
