"""Instruments watch a pipeline while it runs: they time and print passes, find faults, and record failures."""

from fxprune.instruments.bisect import Bisection, bisect
from fxprune.instruments.environment import Settings, read_environment
from fxprune.instruments.printing import PrintGraph
from fxprune.instruments.reproduce import Reproducer, replay
from fxprune.instruments.timing import TimePasses

__all__ = [
    "Bisection",
    "PrintGraph",
    "Reproducer",
    "Settings",
    "TimePasses",
    "bisect",
    "read_environment",
    "replay",
]
