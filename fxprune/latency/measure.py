"""Times operators alone, the nodes of a program as it runs, and programs in turns."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Any, Protocol

import torch
from torch import fx

from fxprune.graph.evaluate import flat_inputs
from fxprune.graph.program import Program
from fxprune.latency.call import Call
from fxprune.process.stopwatch import Stopwatch
from fxprune.report.latency import Latency, compare_latency

WARMUP, RUNS = 2, 11
# Pairs of runs in a comparison: as many as fit into so many seconds, within bounds.
SECONDS, FEWEST, MOST = 8.0, 11, 151
_REPEATS = 5
_SHORTEST = 5e-4  # seconds of one reading: shorter ones are lost in what the clock costs


class Timer(Protocol):
    """What tells times; tests have one that makes them up."""

    def operator(self, call: Call) -> float:
        """Milliseconds of a call."""

    def nodes(self, program: Program) -> list[float]:
        """Milliseconds of each node of a program, in order, in a run on its example inputs."""

    def compare(self, before: Program, after: Program) -> Latency:
        """The latencies of two programs."""


class MachineTimer:
    """Times on this machine, in the mode in which programs are."""

    @torch.no_grad()
    def operator(self, call: Call) -> float:
        """The least of a few readings, on random tensors.

        Raises:
            RuntimeError: the operator cannot be called like this.
        """
        args, kwargs = call.tensors()
        watch, target = Stopwatch.of((args, kwargs)), call.target

        def seconds(times: int) -> float:
            start = watch.read()
            for _ in range(times):
                target(*args, **kwargs)
            return (watch.read() - start) / times

        seconds(1)
        times = max(1, round(_SHORTEST / max(seconds(1), 1e-6)))
        return 1e3 * min(seconds(times) for _ in range(_REPEATS))

    @torch.no_grad()
    def nodes(self, program: Program) -> list[float]:
        """The medians over a few runs."""
        inputs = flat_inputs(program.module, program.args, program.kwargs)
        run = _TimedRun(program, Stopwatch.of((program.args, program.kwargs)))
        for i in range(WARMUP + RUNS):
            if i == WARMUP:
                run.seconds.clear()
            run.run(*inputs, enable_io_processing=False)
        return [1e3 * median(run.seconds[node]) for node in program.nodes]

    def compare(self, before: Program, after: Program) -> Latency:
        """See `compare_latency`; shorter runs are repeated more often."""
        once = compare_latency(before, after, rounds=1)
        fit = int(1e3 * SECONDS / (once.before + once.after))
        return compare_latency(before, after, rounds=min(MOST, max(FEWEST, fit)), warmup=1)


class _TimedRun(fx.Interpreter):
    """Notes the seconds of every node."""

    def __init__(self, program: Program, watch: Stopwatch) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self._watch = watch
        self.seconds: dict[fx.Node, list[float]] = defaultdict(list)

    def run_node(self, n: fx.Node) -> Any:
        start = self._watch.read()
        value = super().run_node(n)
        self.seconds[n].append(self._watch.read() - start)
        return value
