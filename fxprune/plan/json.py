"""Reads and writes plans as JSON (see docs/plan-format.md); needs no program."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from fxprune.errors import PlanError

FORMAT, VERSION = "fxprune-plan", 1
Positions = NDArray[np.int64]
Cut = Mapping[int, Positions]
T = TypeVar("T")

_RANGES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_TOP = ("format", "version", "fingerprint", "tensors", "edits")
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "int | None": (int, type(None)),
    "Any": (int, float, str, type(None)),
}


@dataclass(frozen=True)
class PlanData:
    """The contents of a plan file.

    Attributes:
        kept: the positions kept, as tensor -> axis -> positions; the names of a shared tensor share one dict.
        lengths: the original lengths, as tensor -> axis -> length.
        edits: the graph edits, as instances of the given classes.
        fingerprint: the hash of the program that the plan is for.
    """

    kept: dict[str, Cut]
    lengths: dict[str, Mapping[int, int]]
    edits: tuple[Any, ...]
    fingerprint: str


def to_text(data: PlanData, kinds: Mapping[str, type]) -> str:
    """Returns the JSON text of a plan; equal plans give equal text.

    Args:
        data: the plan.
        kinds: the classes of edits, by name.
    """
    names = {kind: name for name, kind in kinds.items()}
    edits = [{"edit": names[type(e)], **asdict(e)} for e in data.edits]
    top = {"format": FORMAT, "version": VERSION, "fingerprint": data.fingerprint}
    tensors = _tensors_text(data)
    lines = ",\n    ".join(json.dumps(e) for e in edits)
    head = json.dumps(top, indent=2)[:-2]
    listed = f"[\n    {lines}\n  ]" if lines else "[]"
    return f'{head},\n  "tensors": {tensors},\n  "edits": {listed}\n}}\n'


def _tensors_text(data: PlanData) -> str:
    """Writes one line for each axis, so that a diff shows which axes changed."""
    blocks = []
    for names in _tied(data.kept):
        cut = data.kept[names[0]]
        also = [f'"also": {json.dumps(names[1:])}'] if names[1:] else []
        axes = [
            f'"{axis}": {{"size": {size}, "removed": "{show_ranges(_rest(cut[axis], size))}"}}'
            for axis, size in sorted(data.lengths[names[0]].items())
        ]
        inner = ",\n      ".join(also + axes)
        blocks.append(f"{json.dumps(names[0])}: {{\n      {inner}\n    }}")
    return "{\n    " + ",\n    ".join(blocks) + "\n  }" if blocks else "{}"


def _tied(kept: Mapping[str, Cut]) -> list[list[str]]:
    """Returns the names in order, with those of a shared tensor together."""
    sets: dict[int, list[str]] = {}
    for name in sorted(kept):
        sets.setdefault(id(kept[name]), []).append(name)
    return sorted(sets.values())


def _rest(kept: Positions, size: int) -> Positions:
    gone = np.ones(size, bool)
    gone[kept] = False
    return np.flatnonzero(gone)


def show_ranges(positions: Positions) -> str:
    """Writes ascending positions as text.

    >>> show_ranges(np.array([0, 1, 2, 7]))
    '0-2,7'
    """
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    runs = [r for r in np.split(positions, breaks) if len(r)]
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)


def parse_ranges(text: str, size: int) -> Positions:
    """Reads the positions from the text that `show_ranges` writes.

    Raises:
        ValueError: the text is malformed, or positions repeat, are unsorted or are not below `size`.
    """
    if not _RANGES.fullmatch(text):
        raise ValueError("write positions as ranges and numbers: 0-3,7")
    bounds = [[int(n) for n in part.split("-")] for part in text.split(",")]
    last = -1
    for low, high in ((b[0], b[-1]) for b in bounds):
        if low <= last or high < low:
            raise ValueError(f"positions must ascend, each once: {low} follows {max(last, low)}")
        last = high
    if last >= size:
        raise ValueError(f"position {last} does not exist: the axis has {size}")
    return np.concatenate([np.arange(b[0], b[-1] + 1) for b in bounds])


def read_plan(path: Path, kinds: Mapping[str, type]) -> PlanData:
    """Reads a plan file.

    Raises:
        PlanError: the file is missing, is not JSON, or has a wrong key; the message names file and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(
            "cannot read the plan",
            where=str(path),
            why=str(error),
            do="give the path of a file that plan.save wrote",
        ) from error
    return from_text(text, kinds, str(path))


def from_text(text: str, kinds: Mapping[str, type], source: str = "plan") -> PlanData:
    """Reads a plan from JSON text.

    Args:
        text: the text.
        kinds: the classes of edits, by name.
        source: where the text comes from, for error messages.

    Raises:
        PlanError: see `read_plan`.
    """
    try:
        whole = json.loads(text, object_pairs_hook=_no_repeats)
    except ValueError as error:
        raise PlanError(
            "the plan is not valid JSON",
            where=source,
            why=str(error),
            do="write it again with plan.save",
        ) from error
    return _Reader(source).plan(whole, kinds)


def _no_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [k for k, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return found


class _Reader:
    """Checks every value of a plan, and reports the one that is wrong."""

    def __init__(self, source: str) -> None:
        self._source = source

    def plan(self, whole: Any, kinds: Mapping[str, type]) -> PlanData:
        top = self._value(whole, dict, "top level")
        self._header(top)
        self._keys(top, _TOP, "top level")
        kept: dict[str, Cut] = {}
        lengths: dict[str, Mapping[int, int]] = {}
        for name, entry in self._value(top["tensors"], dict, "tensors").items():
            cut, sizes, also = self._tensor(entry, f"tensors, {name}")
            for each in (name, *also):
                if each in kept:
                    self._fail("is listed twice", f"tensors, {each}", "list it once")
                kept[each], lengths[each] = cut, sizes
        listed = self._value(top["edits"], list, "edits")
        edits: tuple[Any, ...] = tuple(
            self._edit(e, kinds, f"edits, entry {i}") for i, e in enumerate(listed)
        )
        return PlanData(kept, lengths, edits, self._value(top["fingerprint"], str, "fingerprint"))

    def _header(self, top: dict[str, Any]) -> None:
        if top.get("format") != FORMAT:
            self._fail(
                f"is {top.get('format')!r}, not {FORMAT!r}",
                "format",
                "give a file that plan.save wrote",
            )
        if top.get("version") != VERSION:
            self._fail(
                f"is {top.get('version')!r}, and this version of fxprune reads {VERSION}",
                "version",
                "make the plan again, or use the version of fxprune that wrote it",
            )

    def _tensor(self, entry: Any, key: str) -> tuple[Cut, dict[int, int], list[str]]:
        entry = dict(self._value(entry, dict, key))
        also = [
            self._value(n, str, f"{key}, also")
            for n in self._value(entry.pop("also", []), list, key)
        ]
        cut: dict[int, Positions] = {}
        sizes: dict[int, int] = {}
        for axis, value in entry.items():
            if not axis.isdecimal():
                self._fail(
                    "is not the number of an axis", f"{key}, {axis}", 'axes are keys like "0"'
                )
            cut[int(axis)], sizes[int(axis)] = self._axis(value, f"{key}, axis {axis}")
        if not cut:
            self._fail(
                "names no axis",
                key,
                "delete the entry: a plan lists only tensors that lose positions",
            )
        return cut, sizes, also

    def _axis(self, value: Any, key: str) -> tuple[Positions, int]:
        value = self._value(value, dict, key)
        self._keys(value, ("size", "removed"), key)
        size = self._value(value["size"], int, f"{key}, size")
        try:
            gone = parse_ranges(self._value(value["removed"], str, f"{key}, removed"), size)
        except ValueError as error:
            self._fail("is wrong", f"{key}, removed", str(error))
        return _rest(gone, size), size

    def _edit(self, value: Any, kinds: Mapping[str, type[T]], key: str) -> T:
        value = dict(self._value(value, dict, key))
        name = value.pop("edit", None)
        if name not in kinds:
            self._fail(f"is {name!r}", f"{key}, edit", f"it is one of {', '.join(kinds)}")
        types = {f.name: _TYPES[str(f.type)] for f in fields(kinds[name])}  # type: ignore[arg-type]
        self._keys(value, types, key)
        for field, allowed in types.items():
            self._value(value[field], allowed, f"{key}, {field}")
        return kinds[name](**value)

    def _keys(self, value: Mapping[str, Any], wanted: Iterable[str], key: str) -> None:
        missing, extra = sorted(set(wanted) - set(value)), sorted(set(value) - set(wanted))
        if missing or extra:
            found = [f"lacks {k!r}" for k in missing] + [f"has an unknown key {k!r}" for k in extra]
            self._fail(" and ".join(found), key, f"the keys are {', '.join(wanted)}")

    def _value(self, value: Any, kind: type[T] | tuple[type[T], ...], key: str) -> T:
        if not isinstance(value, kind) or isinstance(value, bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(_SPOKEN[k] for k in kinds)
            self._fail(f"is {json.dumps(value)[:40]}", key, f"write {wanted}")
        return value

    def _fail(self, what: str, key: str, do: str) -> NoReturn:
        raise PlanError(
            f"{key}: {what}", where=self._source, why="the file was edited incorrectly", do=do
        )


_SPOKEN: dict[type, str] = {
    dict: "an object {...}",
    list: "a list [...]",
    str: "a text",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}
