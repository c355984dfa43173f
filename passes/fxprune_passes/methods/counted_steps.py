"""Observers that count in chosen steps of training, and in nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from fxprune.observe import Observer, count_apart
from fxprune.training import Shrinker

Tensor = torch.Tensor


class CountedSteps:
    """Freezes observers but for chosen steps, and takes back what a step has counted that did not end.

    An evaluation between two steps is not counted, and no step whose loss is not finite.

    Args:
        shrinker: of the network that trains.
        find: gives the observers of its program as it is now, by their paths.

    Attributes:
        count: steps that have counted since `reset`.
    """

    def __init__(self, shrinker: Shrinker, find: Callable[[], Mapping[str, Observer]]) -> None:
        self.shrinker, self.find = shrinker, find
        self.count = 0
        self._kept: dict[str, dict[str, Tensor]] | None = None

    def settle(self) -> None:
        """Of a network that is new: nothing counts before the next step, and each process for itself."""
        for one in self.find().values():
            one.freeze()
        if dist.is_available() and dist.is_initialized():
            count_apart(self.shrinker.module)

    def reset(self) -> None:
        """Forgets what was counted."""
        self.count = 0
        for one in self.find().values():
            one.reset()
        self.settle()

    def begin(self, counts: bool) -> None:
        """Before the forward of a step, which counts or does not."""
        self.roll_back()
        if counts:
            found = self.find()
            self._kept = {
                path: {name: buffer.clone() for name, buffer in one.named_buffers()}
                for path, one in found.items()
            }
            for one in found.values():
                one.freeze(False)

    def finish(self) -> None:
        """Behind a step."""
        if self._kept is not None:
            self.count += 1
            self._kept = None
            for one in self.find().values():
                one.freeze()

    @torch.no_grad()
    def roll_back(self) -> None:
        """Takes back what a step has counted that did not come to its end."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            for path, one in self.find().items():
                for name, buffer in one.named_buffers():
                    buffer.copy_(kept[path][name])
                one.freeze()
