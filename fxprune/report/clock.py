"""Wall time by stage."""

from __future__ import annotations

from time import perf_counter


class Clock:
    """Seconds of each stage of a run.

    Attributes:
        laps: stage -> seconds, in order.
    """

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        """Ends a stage; the next one begins."""
        now = perf_counter()
        self.laps[name], self._last = now - self._last, now
