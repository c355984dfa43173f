"""Reads and writes plans as JSON (see docs/plan-format.md); needs no program."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fxprune.errors import PlanError
from fxprune.files.document import Document, Entry

FORMAT, VERSION = "fxprune-plan", 1
Positions = NDArray[np.int64]
Cut = Mapping[int, Positions]
T = TypeVar("T")

_RANGES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_TOP = ("format", "version", "fingerprint", "tensors", "edits")
# Positions of all tensors together: a mask of a byte each is made of them.
_MOST_POSITIONS = 1 << 28


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
    if last >= size:  # before any of them is made
        raise ValueError(f"position {last} does not exist: the axis has {size}")
    return np.concatenate([np.arange(b[0], b[-1] + 1) for b in bounds])


def read_plan(path: Path, kinds: Mapping[str, type]) -> PlanData:
    """Reads a plan file.

    Raises:
        PlanError: the file is missing, is not JSON, or has a wrong key; the message names file and key.
    """
    return _plan(Document(str(path), PlanError).read(path), kinds)


def from_text(text: str, kinds: Mapping[str, type], source: str = "plan") -> PlanData:
    """Reads a plan from JSON text.

    Args:
        text: the text.
        kinds: the classes of edits, by name.
        source: where the text comes from, for error messages.

    Raises:
        PlanError: see `read_plan`.
    """
    return _plan(Document(source, PlanError).parse(text), kinds)


def _plan(whole: Entry, kinds: Mapping[str, type]) -> PlanData:
    _check_header(whole.mapping(), whole)
    top = whole.record(*_TOP)
    kept: dict[str, Cut] = {}
    lengths: dict[str, Mapping[int, int]] = {}
    left = _MOST_POSITIONS
    for name, entry in top["tensors"].mapping().items():
        cut, sizes, also = _tensor(entry, left)
        left -= sum(sizes.values())
        for each in (name, *also):
            if each in kept:
                entry.fail(f"{each} is listed twice", "list it once")
            kept[each], lengths[each] = cut, sizes
    edits: tuple[Any, ...] = tuple(_edit(e, kinds) for e in top["edits"].items())
    return PlanData(kept, lengths, edits, top["fingerprint"].text())


def _check_header(top: dict[str, Entry], whole: Entry) -> None:
    for key, wanted, do in (
        ("format", FORMAT, "give a file of plan.save"),
        ("version", VERSION, "make the plan again, or use the fxprune that wrote it"),
    ):
        if key not in top:
            whole.fail(f"lacks {key!r}", do)
        if top[key].value != wanted:
            top[key].fail(
                f"is {str(top[key].value)[:40]!r}; this version of fxprune reads {wanted}", do
            )


def _tensor(entry: Entry, left: int) -> tuple[Cut, dict[int, int], list[str]]:
    axes = entry.mapping()
    also = [e.text() for e in axes.pop("also").items()] if "also" in axes else []
    cut: dict[int, Positions] = {}
    sizes: dict[int, int] = {}
    for axis, value in axes.items():
        if not (axis.isdecimal() and len(axis) < 4):
            value.fail("is not the number of an axis", 'axes are keys like "0"')
        cut[int(axis)], sizes[int(axis)] = _axis(
            value.called(f"axis {axis}"), left - sum(sizes.values())
        )
    if not cut:
        entry.fail("names no axis", "delete the entry: only tensors that lose positions are listed")
    return cut, sizes, also


def _axis(entry: Entry, left: int) -> tuple[Positions, int]:
    facts = entry.record("size", "removed")
    size = facts["size"].integer(0, max(0, left))
    try:
        gone = parse_ranges(facts["removed"].text(), size)
    except ValueError as error:
        facts["removed"].fail("is wrong", str(error))
    return _rest(gone, size), size


def _edit(entry: Entry, kinds: Mapping[str, type[T]]) -> T:
    values = entry.mapping()
    if "edit" not in values:
        entry.fail("lacks 'edit'", f"it is one of {', '.join(kinds)}")
    kind = kinds[values["edit"].text(list(kinds))]
    read = {f.name: _READ[str(f.type)] for f in fields(kind)}  # type: ignore[arg-type]
    found = entry.record("edit", *read)
    return kind(**{name: read_one(found[name]) for name, read_one in read.items()})


def _optional(entry: Entry) -> int | None:
    return None if entry.value is None else entry.integer()


def _scalar(entry: Entry) -> int | float | str | None:
    if isinstance(entry.value, str):
        return entry.text()
    return entry.number() if isinstance(entry.value, float) else _optional(entry)


_READ: dict[str, Callable[[Entry], Any]] = {
    "str": Entry.text,
    "int": Entry.integer,
    "int | None": _optional,
    "Any": _scalar,
}
