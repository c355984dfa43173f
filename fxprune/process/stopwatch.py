"""Seconds of work: on one CPU thread the processor time of that thread, elsewhere the time that passes.

What else runs on the machine hardly changes the time of a single thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter, thread_time
from typing import Any

import torch
from torch.utils import _pytree as pytree


class Stopwatch:
    """Reads the clock that suits some devices, once what they were given to do is done.

    Args:
        devices: on which the work runs.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        found = set(devices)
        self._gpus = sorted((d for d in found if d.type == "cuda"), key=str)
        alone = torch.get_num_threads() == 1 and all(d.type == "cpu" for d in found)
        self._clock = thread_time if alone else perf_counter

    @classmethod
    def of(cls, values: Any) -> Stopwatch:
        """The stopwatch for the devices of the tensors in nested values."""
        leaves = pytree.tree_leaves(values)
        return cls(x.device for x in leaves if isinstance(x, torch.Tensor))

    def read(self) -> float:
        """Seconds since some moment."""
        for device in self._gpus:
            torch.cuda.synchronize(device)
        return self._clock()
