"""Pruning plans as data: what is kept of every tensor, and what changes in the graph."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fxprune.algebra.label import IntArray
from fxprune.errors import PlanError
from fxprune.files.document import Document
from fxprune.graph.program import Program
from fxprune.markup import first_rows, join, tag
from fxprune.plan.json import PlanData, read_plan, to_text

Kept = Mapping[str, Mapping[int, IntArray]]


@dataclass(frozen=True)
class SetArgument:
    """Sets an argument of a node, which must have the value `old` before.

    Attributes:
        node: the name of the node.
        argument: the name of the argument.
        index: the entry of the argument if it is a list, else None.
        old: the value before.
        new: the value after.
    """

    node: str
    argument: str
    index: int | None
    old: Any
    new: Any


@dataclass(frozen=True)
class ScaleArgument:
    """Multiplies a length in an argument of a node, known only at run time, by `numerator / denominator`.

    Attributes:
        node: the name of the node.
        argument: the name of the argument.
        index: the entry of the argument if it is a list, else None.
        numerator: the new length where the old one is `denominator`.
        denominator: see `numerator`.
    """

    node: str
    argument: str
    index: int | None
    numerator: int
    denominator: int


@dataclass(frozen=True)
class Rescale:
    """Multiplies the output of a node, an average, by `numerator / denominator`.

    Attributes:
        node: the name of the node.
        numerator: the kept length.
        denominator: the original length.
    """

    node: str
    numerator: int
    denominator: int


Edit = SetArgument | ScaleArgument | Rescale
KINDS: dict[str, type[Edit]] = {"set": SetArgument, "scale": ScaleArgument, "rescale": Rescale}


@dataclass(frozen=True, eq=False)
class Plan:
    """What a removal of units does to a program, as data.

    Attributes:
        kept: the original positions that are kept, ascending, as parameter or buffer -> axis -> positions;
            only axes that lose positions are listed.
        edits: the changes of the graph; they follow from the program and the removed units.
        fingerprint: the hash of the program that the plan was made for.
        removed: the removed units, numbered by the analysis of that program; empty for a plan from a file.
        lengths: the original length of every axis in `kept`, as parameter or buffer -> axis -> length.
        program: the program, if the plan was made from it and not read from a file.
    """

    kept: Kept
    edits: tuple[Edit, ...]
    fingerprint: str
    removed: IntArray
    lengths: Mapping[str, Mapping[int, int]] = field(default_factory=dict, repr=False)
    program: Program | None = field(default=None, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def _repr_html_(self) -> str:
        """A short table, for notebooks."""
        rows = [
            (name, axis, self.lengths[name][axis], len(positions))
            for name, cut in self.kept.items()
            for axis, positions in cut.items()
        ]
        title = tag("p", f"Plan: {len(rows):,} axes of {len(self.kept):,} tensors lose positions")
        return join([title, first_rows(("tensor", "axis", "before", "after"), rows, "axes")])

    @cached_property
    def digest(self) -> str:
        """Returns a hash of what the plan keeps and of the program it is for; it is the same on every machine."""
        state = hashlib.sha256(self.fingerprint.encode())
        for name in sorted(self.kept):
            for axis, positions in sorted(self.kept[name].items()):
                state.update(f"{name}:{axis}:".encode() + positions.astype("<i8").tobytes())
        return state.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON, see docs/plan-format.md.

        Raises:
            PlanError: the file cannot be written.
        """
        data = PlanData(dict(self.kept), dict(self.lengths), self.edits, self.fingerprint)
        Document(str(path), PlanError).write(Path(path), to_text(data, KINDS))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a plan from a JSON file; `fp.shrink` checks it against the program and finds the units.

        Raises:
            PlanError: the file does not exist, or was edited incorrectly.
        """
        data = read_plan(Path(path), KINDS)
        return cls(data.kept, data.edits, data.fingerprint, np.zeros(0, np.int64), data.lengths)
