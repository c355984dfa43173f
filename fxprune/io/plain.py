"""Arguments of a graph as JSON: what JSON has no word for stands in an object of one key, its kind."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from fxprune.errors import LoadError
from fxprune.files.document import Entry

Write = Callable[[Any], Any]
Read = Callable[[Entry], Any]
_OF_TORCH: tuple[tuple[str, type], ...] = (
    ("dtype", torch.dtype),
    ("layout", torch.layout),
    ("memory_format", torch.memory_format),
)
_DEVICE = re.compile(r"[a-z]+(:\d{1,4})?")
_LARGEST = 1 << 64  # an argument may be a number of uint64


class Writer:
    """Writes values down.

    Args:
        further: kinds besides the plain ones: name -> (class, how its values are written).
    """

    def __init__(self, further: Mapping[str, tuple[Any, Write]] | None = None) -> None:
        self._further = further or {}

    def write(self, x: Any, where: str) -> Any:
        """A value as JSON.

        Raises:
            LoadError: it is nothing that can be saved.
        """
        if x is None or type(x) in (bool, str):
            return x
        if type(x) is int and abs(x) < _LARGEST:
            return x
        if type(x) is float:
            return x if math.isfinite(x) else {"float": str(x)}
        if isinstance(x, list):
            return [self.write(v, where) for v in x]
        for kind, (cls, write) in self._further.items():
            if isinstance(x, cls):
                return {kind: write(x)}
        return self._tagged(x, where)

    def _tagged(self, x: Any, where: str) -> Any:
        if type(x) in (tuple, torch.Size):
            return {"tuple": [self.write(v, where) for v in x]}
        if isinstance(x, dict):
            return {"dict": [[self.write(k, where), self.write(v, where)] for k, v in x.items()]}
        if isinstance(x, slice):
            return {"slice": [self.write(v, where) for v in (x.start, x.stop, x.step)]}
        if isinstance(x, complex):
            return {"complex": [self.write(v, where) for v in (x.real, x.imag)]}
        if x is ...:
            return {"ellipsis": None}
        if isinstance(x, torch.device):
            return {"device": str(x)}
        for kind, cls in _OF_TORCH:
            if isinstance(x, cls):
                return {kind: str(x).removeprefix("torch.")}
        raise LoadError(
            "a value cannot be saved",
            where=where,
            why=f"a {type(x).__name__} is neither a tensor nor a plain value",
            do="keep it in a tensor, or leave it out",
        )


class Reader:
    """Reads values that a `Writer` wrote.

    Args:
        further: kinds besides the plain ones: name -> how they are read.
    """

    def __init__(self, further: Mapping[str, Read] | None = None) -> None:
        self._further = further or {}

    def read(self, entry: Entry) -> Any:
        """The value of an entry."""
        x = entry.value
        if x is None or isinstance(x, bool | float):
            return x
        if isinstance(x, str):
            return entry.text()
        if isinstance(x, int):
            return entry.integer(1 - _LARGEST, _LARGEST - 1)
        if isinstance(x, list):
            return [self.read(e) for e in entry.items()]
        ((kind, inner),) = entry.mapping().items() if len(x) == 1 else (("", entry),)
        if kind in self._further:
            return self._further[kind](inner)
        if kind not in self._KINDS:
            entry.fail("is of no kind that is known", f"it is one of {', '.join(self._KINDS)}")
        return self._KINDS[kind](self, inner)

    def _tuple(self, entry: Entry) -> Any:
        return tuple(self.read(e) for e in entry.items())

    def _dict(self, entry: Entry) -> Any:
        found: dict[Any, Any] = {}
        for pair in entry.items():
            key, value = pair.items(2)
            name = self.read(key)
            if not isinstance(name, str | int | float | bool | None):
                key.fail("is no key", "write a text or a number")
            found[name] = self.read(value)
        return found

    def _slice(self, entry: Entry) -> Any:
        return slice(*(self.read(e) for e in entry.items(3)))

    def _complex(self, entry: Entry) -> Any:
        real, imaginary = (self.read(e) for e in entry.items(2))
        if not (isinstance(real, int | float) and isinstance(imaginary, int | float)):
            entry.fail("is no complex number", "write two numbers")
        return complex(real, imaginary)

    def _float(self, entry: Entry) -> Any:
        return float(entry.text(("inf", "-inf", "nan")))

    def _ellipsis(self, entry: Entry) -> Any:
        return ...

    def _device(self, entry: Entry) -> Any:
        return read_device(entry)

    def _dtype(self, entry: Entry) -> Any:
        return read_dtype(entry)

    def _layout(self, entry: Entry) -> Any:
        return _of_torch(entry, torch.layout)

    def _memory_format(self, entry: Entry) -> Any:
        return _of_torch(entry, torch.memory_format)

    _KINDS: ClassVar[dict[Any, Callable[[Reader, Entry], Any]]] = {
        "tuple": _tuple,
        "dict": _dict,
        "slice": _slice,
        "complex": _complex,
        "float": _float,
        "ellipsis": _ellipsis,
        "device": _device,
        "dtype": _dtype,
        "layout": _layout,
        "memory_format": _memory_format,
    }


def read_dtype(entry: Entry) -> torch.dtype:
    """The type of numbers that an entry names."""
    found: torch.dtype = _of_torch(entry, torch.dtype)
    return found


def read_device(entry: Entry) -> torch.device:
    """The device that an entry names; it need not be there."""
    text = entry.text()
    if not _DEVICE.fullmatch(text):
        entry.fail(f"is {text[:40]!r}, no device", "write cpu or cuda:0")
    try:
        return torch.device(text)
    except RuntimeError as error:
        entry.fail(f"is {text!r}, no device: {error}"[:200], "write cpu or cuda:0")


def _of_torch(entry: Entry, kind: type) -> Any:
    """What torch has under a name, of one class only."""
    found = vars(torch).get(entry.text())
    if not isinstance(found, kind):
        entry.fail(f"is {entry.text()[:40]!r}, no {kind.__name__} of torch", "save it again")
    return found
