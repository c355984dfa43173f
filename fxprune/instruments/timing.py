"""Measures the time and memory of each pass."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from tabulate import tabulate

from fxprune.graph.program import Program
from fxprune.pipeline.context import Context
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Pass
from fxprune.pipeline.pipeline import Pipeline
from fxprune.pipeline.result import Result

_KIB = 1024 if sys.platform == "darwin" else 1  # the system counts the peak in bytes or in KiB


@dataclass(frozen=True)
class Timing:
    """The time and memory that one pass took.

    Attributes:
        text: the pass as pipeline text.
        seconds: the wall time of the pass in seconds, without checks.
        peak_kib: by how much the pass raised the peak resident memory of this process, in KiB; 0 if the pass
            stayed below the earlier peak.
        new_kib: the size of the tensors that the pass's result does not share with its input, in KiB.
    """

    text: str
    seconds: float
    peak_kib: int
    new_kib: float


class TimePasses(Instrument):
    """Measures every pass and prints a table after the last one, or after a failure.

    Args:
        stream: where to print; standard error if None.

    Attributes:
        timings: the measurements so far.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.timings: list[Timing] = []
        self._stream = stream
        self._peak = 0

    def before_run(self, pipeline: Pipeline, program: Program, ctx: Context) -> None:
        self.timings = []

    def before_pass(self, one: Pass, program: Program, ctx: Context) -> None:
        self._peak = _peak()

    def after_pass(self, one: Pass, before: Program, after: Program, ctx: Context) -> None:
        text, grown = str(Pipeline([one])), _peak() - self._peak
        self.timings.append(Timing(text, ctx.seconds, grown, _new_bytes(before, after) / 1024))

    def on_failure(self, one: Pass, before: Program, error: Exception, ctx: Context) -> str:
        self._print()
        return ""

    def after_run(self, result: Result) -> None:
        self._print()

    def __str__(self) -> str:
        total = sum(t.seconds for t in self.timings) or 1.0
        rows = [
            (
                t.text,
                f"{t.seconds:.4f}",
                f"{t.seconds / total:.0%}",
                f"{t.peak_kib:,}",
                f"{t.new_kib:,.1f}",
            )
            for t in self.timings
        ]
        header = ["pass", "seconds", "share", "peak memory added, KiB", "new tensors, KiB"]
        align = ["left"] + ["right"] * 4
        if not rows:
            return "no pass was timed"
        return tabulate(rows, header, tablefmt="simple", colalign=align, disable_numparse=True)

    def to_json(self) -> list[dict[str, Any]]:
        """Returns plain data, one object for each pass."""
        return [asdict(t) for t in self.timings]

    def _print(self) -> None:
        (self._stream or sys.stderr).write(f"{self}\n")


def _peak() -> int:
    """Returns the peak resident memory of this process so far, in KiB; 0 if the system does not measure it."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // _KIB


def _new_bytes(before: Program, after: Program) -> int:
    """Returns the bytes of the tensors of a program that another one does not hold."""
    known = {id(t) for t in before.tensors().values()}
    new = {id(t): t for t in after.tensors().values() if id(t) not in known}
    return sum(t.numel() * t.element_size() for t in new.values())
