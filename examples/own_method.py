"""A method of one's own, used by fp.train_smaller: the least units leave the network step by step.

Made images, so that it runs in seconds: python examples/own_method.py
"""

from __future__ import annotations

from typing import Any

import torch

import fxprune as fp
from fxprune.training import Change, Settings, Shrinker
from fxprune_passes.methods.method import Method
from stripes import make_batch, make_network


class GradualMagnitude(Method):
    """Removes units of the least magnitude behind each epoch between the warm-up and 60 % of the training.

    The MACs come down by the same factor each time: after k of n rounds keep^(k / n) of them are left.
    """

    def __init__(self, shrinker: Shrinker, wish: Settings, criterion: str = "magnitude") -> None:
        super().__init__(shrinker)
        self.wish, self.criterion = wish, criterion
        self.start = fp.summary(shrinker.program).total.macs
        self.epoch = 0

    @property
    def left(self) -> float:
        """The share of the MACs that is left."""
        return fp.summary(self.shrinker.program).total.macs / self.start

    def remove(self) -> list[Change]:
        self.epoch += 1
        done = self.epoch - self.wish.warm_up
        rounds = self.wish.decided - self.wish.warm_up
        if not 0 < done <= rounds:
            return []
        target = self.wish.keep ** (done / rounds)
        outcome = fp.prune(
            self.shrinker.program,
            keep=target / self.left,
            importance=self.criterion,
            scope="group",
            verify=False,
        )
        return [self.shrinker.apply(outcome.plan, verify=True)]

    def numbers(self) -> dict[str, float]:
        return {"macs_left": self.left}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"epoch": self.epoch}

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state)
        self.epoch = state["epoch"]


def make(shrinker: Shrinker, wish: Settings) -> GradualMagnitude:
    """What an entry point of the group `fxprune.methods` names; options of the call are those of the class."""
    return GradualMagnitude(shrinker, wish, **wish.options)


def main(epochs: int = 5, steps: int = 20) -> fp.training.Smaller:
    torch.manual_seed(0)
    data = [make_batch() for _ in range(steps)]
    held_out = [make_batch() for _ in range(4)]
    result = fp.train_smaller(
        make_network(blocks=3, inside=8),
        data,
        method=make,
        keep=0.5,
        metric="macs",
        epochs=epochs,
        validation=held_out,
        progress=False,
    )
    print(result.history, result, sep="\n\n")
    return result


if __name__ == "__main__":
    main()
