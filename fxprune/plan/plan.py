"""Pruning plans as data: what stays of every tensor and what changes in the graph."""

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
from fxprune.document import Document
from fxprune.errors import PlanError
from fxprune.graph.program import Program
from fxprune.plan.json import PlanData, read_plan, to_text

Kept = Mapping[str, Mapping[int, IntArray]]


@dataclass(frozen=True)
class SetArgument:
    """Node `node`: `argument` (its entry `index`, if a list) becomes `new`; it must be `old` before."""

    node: str
    argument: str
    index: int | None
    old: Any
    new: Any


@dataclass(frozen=True)
class ScaleArgument:
    """Node `node`: the length known at run time in `argument` is multiplied by `numerator / denominator`."""

    node: str
    argument: str
    index: int | None
    numerator: int
    denominator: int


@dataclass(frozen=True)
class Rescale:
    """The output of node `node`, an average, is multiplied by `numerator / denominator`."""

    node: str
    numerator: int
    denominator: int


Edit = SetArgument | ScaleArgument | Rescale
KINDS: dict[str, type[Edit]] = {"set": SetArgument, "scale": ScaleArgument, "rescale": Rescale}


@dataclass(frozen=True, eq=False)
class Plan:
    """What a rewrite will do, as data.

    Attributes:
        kept: parameter or buffer -> axis -> original positions that stay, ascending; only what loses some.
        edits: changes of the graph, a function of the program and of what is removed.
        fingerprint: of the program that the plan was made for.
        removed: the removed units, as numbered by the analysis of that program; none in a plan from a file.
        lengths: parameter or buffer -> axis -> its original length, for every axis in `kept`.
        program: that program, where the plan was made from it and not read from a file.
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

    @cached_property
    def digest(self) -> str:
        """A hash of what the plan keeps and of the program it is for; equal on every machine."""
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
        """Reads a plan; `fp.shrink` checks it against the program and works out the units.

        Raises:
            PlanError: no such file, or one that was edited wrongly.
        """
        data = read_plan(Path(path), KINDS)
        return cls(data.kept, data.edits, data.fingerprint, np.zeros(0, np.int64), data.lengths)
