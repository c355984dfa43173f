"""The places where a model keeps whole numbers: attributes, entries of containers, fields of configs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_DEPTH = 4
_LONGEST = 256  # entries of a container that is looked into: a longer one is data


@dataclass(frozen=True)
class Slot:
    """A place that holds a whole number.

    Attributes:
        path: the module that it is in.
        kind: the class of that module.
        trail: the name of the attribute, and the keys from there.
        value: the number, as found; None in a config for a field that holds nothing.
    """

    path: str
    kind: str
    trail: tuple[Any, ...]
    value: Any

    def __hash__(self) -> int:
        return hash((self.path, self.trail))  # the value may be a list

    def __str__(self) -> str:
        name = "".join(f".{t}" if isinstance(t, str) else f"[{t}]" for t in self.trail)
        return f"{self.path}{name}".removeprefix(".")

    def put(self, model: nn.Module, value: Any) -> None:
        """Puts a number in this place of a model."""
        _put(model.get_submodule(self.path), self.trail, value)

    def get(self, model: nn.Module) -> Any:
        """The number in this place of a model; None where there is no such place."""
        x: Any = model.get_submodule(self.path)
        for step in self.trail:
            try:
                x = x[step] if isinstance(x, list | tuple | dict) else getattr(x, step)
            except (AttributeError, KeyError, IndexError):
                return None
        return x


def find_slots(model: nn.Module, of: type = int) -> Iterator[Slot]:
    """The slots of a model, each object once; those of torch's own modules have a table (`register_sizes`).

    Args:
        model: to look into.
        of: the type of the numbers.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith("torch."):
            continue
        for name, value in vars(module).items():
            if not name.startswith("_") and name != "training":
                for trail, number in _numbers(value, (name,), seen, of):
                    yield Slot(path, f"{kind.__module__}.{kind.__qualname__}", trail, number)


def _numbers(
    x: Any, trail: tuple[Any, ...], seen: set[int], of: type
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if type(x) is of:
        yield trail, x
        return
    if len(trail) > _DEPTH or id(x) in seen:
        return
    held = _held(x)
    if held:
        seen.add(id(x))
    for key, value in held.items():
        yield from _numbers(value, (*trail, key), seen, of)


def _held(x: Any) -> dict[Any, Any]:
    """What a container or a config holds."""
    if isinstance(x, list | tuple):
        return dict(enumerate(x)) if len(x) <= _LONGEST else {}
    if isinstance(x, dict):
        return dict(x) if len(x) <= _LONGEST else {}
    if not is_config(x):
        return {}
    return {k: v for k, v in vars(x).items() if not k.startswith("_")}


def is_config(x: Any) -> bool:
    """Whether an object is a plain holder of values, of a class outside torch and Python."""
    root = type(x).__module__.partition(".")[0]
    if isinstance(x, nn.Module | torch.Tensor | type) or callable(x):
        return False
    return root not in ("torch", "builtins", "collections", "functools") and hasattr(x, "__dict__")


def _put(x: Any, trail: tuple[Any, ...], value: Any) -> Any:
    """Puts a value at the end of a trail, and returns what `x` then is: a tuple is replaced by another."""
    step, rest = trail[0], trail[1:]
    inner = x[step] if isinstance(x, list | tuple | dict) else getattr(x, step)
    new = _put(inner, rest, value) if rest else value
    if isinstance(x, tuple):
        entries: list[Any] = [new if i == step else v for i, v in enumerate(x)]
        return type(x)(*entries) if hasattr(x, "_fields") else type(x)(entries)
    if isinstance(x, list | dict):
        if x[step] is not new:
            x[step] = new
    elif getattr(x, step) is not new:
        setattr(x, step, new)
    return x
