"""Remarks of passes: chosen, counted, grouped, written as JSON lines."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from tabulate import tabulate

from fxprune.errors import OptionError
from fxprune.files.document import Document
from fxprune.remark import Kind, Remark, read_remark

KINDS: tuple[Kind, ...] = ("applied", "missed", "analysis")


def select(remarks: Iterable[Remark], glob: str = "*", kind: str = "*") -> list[Remark]:
    """The remarks of passes, and of a kind: `select(remarks, "fuse-*", "missed")`."""
    return [r for r in remarks if fnmatchcase(_owner(r), glob) and fnmatchcase(r.kind, kind)]


def count_remarks(remarks: Iterable[Remark]) -> str:
    """How many remarks of each kind, by pass."""
    counts = Counter((_owner(r), r.kind) for r in remarks)
    rows = [
        (owner, *(counts[owner, kind] or "" for kind in KINDS))
        for owner in dict.fromkeys(o for o, _ in counts)
    ]
    return tabulate(rows, ["remarks of", *KINDS]) if rows else "no remarks"


def grouped(remarks: Iterable[Remark], shown: int = 3) -> str:
    """The remarks as text, those of one code together, with the first few of each.

    Args:
        remarks: in any order.
        shown: how many of one code; the others are counted.
    """
    blocks: list[str] = []
    together: dict[tuple[str, str], list[Remark]] = {}
    for remark in remarks:
        together.setdefault((remark.code, remark.kind), []).append(remark)
    for same in together.values():
        blocks += map(str, same[:shown])
        if len(same) > shown:
            blocks.append(f"  and {len(same) - shown} more of {same[0].kind} {same[0].code}")
    return "\n".join(blocks)


def write_remarks(remarks: Iterable[Remark], path: str | os.PathLike[str]) -> None:
    """Writes one JSON object for each remark and line.

    Raises:
        OptionError: the file cannot be written.
    """
    lines = (json.dumps(r.to_json()) for r in remarks)
    file = Document(str(path), OptionError)
    file.write(Path(path), "".join(f"{line}\n" for line in lines))


def read_remarks(path: str | os.PathLike[str]) -> list[Remark]:
    """The remarks that `write_remarks` wrote.

    Raises:
        OptionError: the file cannot be read, or holds something else.
    """
    file = Document(str(path), OptionError)
    return [read_remark(file.parse(line)) for line in file.text(Path(path)).splitlines()]


def _owner(remark: Remark) -> str:
    return remark.code.partition(".")[0]
