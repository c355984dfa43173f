"""The measured times of this machine, each measured once."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.graph.program import Program
from fxprune.latency.cache import cache_at
from fxprune.latency.call import Call
from fxprune.latency.measure import MachineTimer, Timer
from fxprune.plan.fingerprint import fingerprint
from fxprune.remark import Remark
from fxprune.report.latency import Latency


class LatencyTable:
    """Times of operators, of the nodes of programs and of smaller programs; each is measured once and kept in a file.

    A plan for a latency is made from these alone, so that the same file gives the same plan. Times hold for a machine,
    its number of threads and a version of torch; of others there may be times in the same file.

    Args:
        path: the file. None: what the environment variable FXPRUNE_LATENCY_CACHE names, or else `latencies.json` in
            the platform's cache folder for fxprune. It is plain JSON; one that is damaged is written anew.
        timer: what measures; by default the clock of this machine.

    Raises:
        OptionError: the path is a folder.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, timer: Timer | None = None
    ) -> None:
        self._cache = cache_at(path)
        self._timer = timer or MachineTimer()
        self._failed: dict[str, str] = {}

    @property
    def remarks(self) -> list[Remark]:
        """On the file, and on operators that cannot be timed alone."""
        return [*self._cache.remarks, *(_not_timed(*found) for found in self._failed.items())]

    def operator(self, call: Call, device: str) -> float | None:
        """Milliseconds of a call alone; None where it cannot be made alone.

        Args:
            call: an operator with the shapes of its arguments.
            device: of `devices_of`.
        """
        key = f"{machine()}; {device}; {call.key}"
        known = self._cache.get(key)
        if known is None:
            name = str(call.target)
            if name in self._failed and call.key in self._failed[name]:
                return None
            try:
                known = self._cache.put(key, [self._timer.operator(call)])
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                self._failed.setdefault(name, f"{call.key}: {str(error).splitlines()[0]}")
                return None
        return known[0]

    def nodes(self, program: Program) -> list[float]:
        """Milliseconds of each node of a program, in order, in a run on its example inputs."""
        key = f"{_subject(program)}; nodes"
        known = self._cache.get(key)
        if known is None or len(known) != len(program.graph.nodes):
            known = self._cache.put(key, self._timer.nodes(program))
        return known

    def compare(self, program: Program, small: Program) -> Latency:
        """The latency of a program and of a smaller one."""
        key = f"{_subject(program)}; against {fingerprint(small)}"
        known = self._cache.get(key)
        if known is None or len(known) != 4:
            found = self._timer.compare(program, small)
            known = self._cache.put(key, [found.before, found.after, found.ratio, found.rounds])
        before, after, ratio, rounds = known
        return Latency(before, after, ratio, int(rounds), torch.get_num_threads())

    def save(self) -> None:
        """Writes what was measured to the file."""
        self._cache.save()


def devices_of(program: Program) -> str:
    """The devices of a program's inputs and tensors, by name."""
    leaves = [*pytree.tree_leaves((program.args, program.kwargs)), *program.tensors().values()]
    devices = {x.device for x in leaves if isinstance(x, torch.Tensor)}
    return ", ".join(sorted(map(_device_name, devices)))


@cache
def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() if device.type == "cpu" else device.type


def _processor() -> str:
    """The name of the processor, and the instructions that torch uses of it."""
    name = platform.processor() or platform.machine()
    if (facts := Path("/proc/cpuinfo")).exists():
        with facts.open(encoding="utf-8", errors="replace") as lines:
            found = (x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
            name = next(found, name)
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"


def machine() -> str:
    """What times hold for besides the devices: the version of torch and the number of threads."""
    return f"torch {torch.__version__}; {torch.get_num_threads()} threads"


def _subject(program: Program) -> str:
    shapes: Sequence[Any] = [
        tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        for x in pytree.tree_leaves((program.args, program.kwargs))
    ]
    return f"{machine()}; {devices_of(program)}; program {fingerprint(program)} on {shapes}"


def _not_timed(operator: str, why: str) -> Remark:
    what = "its time could not be measured alone at some widths; it is taken to shrink with them"
    return Remark("analysis", "latency.not-timed", operator, what, why)
