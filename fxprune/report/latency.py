"""Measures the latency of two programs in alternation, so that both run under the same conditions.

On one CPU thread it is the processor time of that thread, which what else runs on the machine hardly changes; on
several threads or on an accelerator it is the time that passes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from statistics import median

import torch

from fxprune.errors import OptionError
from fxprune.files.document import Entry
from fxprune.graph.program import Program
from fxprune.process.stopwatch import Stopwatch

_SHARES = ("wished", "predicted")


@dataclass(frozen=True)
class Latency:
    """Median latencies over all rounds; prints as text.

    Attributes:
        before: milliseconds per call of the first program.
        after: milliseconds per call of the second program.
        ratio: the median over the rounds of after / before; since rounds are pairs, drift cancels out.
        rounds: the number of pairs that were timed.
        threads: the number of CPU threads that torch uses.
        wished: the share of `before` that was asked for, where one was.
        predicted: the share that was predicted for this network, where one was wished.
    """

    before: float
    after: float
    ratio: float
    rounds: int
    threads: int
    wished: float | None = None
    predicted: float | None = None

    def __str__(self) -> str:
        speed = f"{1 / self.ratio:.2f} times as fast" if self.ratio < 1 else "no faster"
        if self.wished is not None and self.predicted is not None:
            speed += f"; a share of {self.ratio:.3f}, wished {self.wished:g}, predicted {self.predicted:.3f}"
        return (
            f"latency {self.before:.1f} ms -> {self.after:.1f} ms, {speed} "
            f"(median of {self.rounds} interleaved rounds, {self.threads} threads)"
        )

    def to_json(self) -> dict[str, float]:
        """Returns the fields as a JSON object, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_latency(entry: Entry) -> Latency:
    """The latency of a JSON object of `Latency.to_json`."""
    names = [f.name for f in fields(Latency) if f.name not in _SHARES]
    facts = entry.record(*names, optional=_SHARES)
    found = {name: e.number() for name, e in facts.items() if name not in ("rounds", "threads")}
    for name, value in found.items():
        if value <= 0:
            facts[name].fail("is not above 0", "leave the latency out")
    return Latency(**found, rounds=facts["rounds"].integer(1), threads=facts["threads"].integer(1))


def compare_latency(
    before: Program, after: Program, *, rounds: int = 15, warmup: int = 3
) -> Latency:
    """Times two programs in eval mode on the example inputs of the first one.

    Args:
        before: a captured network; its mode is restored afterwards.
        after: another program that takes the same inputs.
        rounds: the number of pairs of calls that are timed.
        warmup: the number of untimed pairs of calls before that.

    Raises:
        OptionError: `rounds` is less than 1.
    """
    if rounds < 1:
        raise OptionError(f"rounds={rounds}", do="time at least one round")
    modes = before.training, after.training
    try:
        before.eval()
        after.eval()
        pairs = [_pair(before, after) for _ in range(warmup + rounds)][warmup:]
    finally:
        before.train(modes[0])
        after.train(modes[1])
    return Latency(
        1e3 * median(a for a, _ in pairs),
        1e3 * median(b for _, b in pairs),
        median(b / a for a, b in pairs),
        rounds,
        torch.get_num_threads(),
    )


def _pair(before: Program, after: Program) -> tuple[float, float]:
    return _seconds(before, before), _seconds(after, before)


@torch.no_grad()
def _seconds(program: Program, inputs: Program) -> float:
    """Returns the time of one call in seconds."""
    watch = Stopwatch.of((inputs.args, inputs.kwargs))
    start = watch.read()
    program(*inputs.args, **inputs.kwargs)
    return watch.read() - start
