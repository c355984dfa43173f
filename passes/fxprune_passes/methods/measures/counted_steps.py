"""Lets observers count in selected training steps only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from fxprune.observe import Observer, count_apart
from fxprune.training import Shrinker

Tensor = torch.Tensor


class CountedSteps:
    """Freezes observers except in selected steps, and discards the counts of a step that did not complete.

    Evaluations between two steps are not counted, and neither are steps whose loss is not finite.

    Args:
        shrinker: the shrinker of the network in training.
        find: returns the observers of its current program by their paths.

    Attributes:
        count: the number of counted steps since `reset`.
    """

    def __init__(self, shrinker: Shrinker, find: Callable[[], Mapping[str, Observer]]) -> None:
        self.shrinker, self.find = shrinker, find
        self.count = 0
        self._kept: dict[str, dict[str, Tensor]] | None = None

    def settle(self) -> None:
        """Prepares a new network: observers are frozen until the next step, and each process counts separately."""
        for one in self.find().values():
            one.freeze()
        if dist.is_available() and dist.is_initialized():
            count_apart(self.shrinker.module)

    def reset(self) -> None:
        """Discards all counts."""
        self.count = 0
        for one in self.find().values():
            one.reset()
        self.settle()

    def begin(self, counts: bool) -> None:
        """Runs before the forward pass of a step, and says whether the step counts."""
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
        """Runs after a completed step."""
        if self._kept is not None:
            self.count += 1
            self._kept = None
            for one in self.find().values():
                one.freeze()

    @torch.no_grad()
    def roll_back(self) -> None:
        """Discards the counts of a step that did not complete."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            for path, one in self.find().items():
                for name, buffer in one.named_buffers():
                    buffer.copy_(kept[path][name])
                one.freeze()
