"""What the methods have in common: where they stand in a training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fxprune.pipeline import run_pipeline
from fxprune.program import Program
from fxprune.training import Change, Shrinker, TrainingError

Tensor = torch.Tensor
Loss = Callable[[nn.Module], Tensor]
FOR_USE = "delete-gated | remove-observers | fold-batchnorm | dead-units | fuse-linear | dead-code"


class Method:
    """A controller beside a training loop: it watches steps, and shrinks the network between epochs.

    The short form of a loop is `method.step(loss)` for each batch and `method.end_epoch()` behind each epoch.
    A loop with steps of its own (gradient clipping, mixed precision, accumulation) writes out what `step` does:

        method.begin()
        optimizer.zero_grad()
        value = loss(method.module)
        value.backward()
        method.learn(value.detach(), loss)
        optimizer.step()
        method.finish()

    Behind training `method.finish_training()` gives the network for use.

    Args:
        shrinker: of the network that trains and its optimizer; gates and observers are put into its program.
    """

    def __init__(self, shrinker: Shrinker) -> None:
        self.shrinker = shrinker

    @property
    def module(self) -> nn.Module:
        """The network as it is now; another one after each shrinking."""
        return self.shrinker.module

    def step(self, loss: Loss) -> Tensor:
        """One step of training.

        Args:
            loss: gives the mean loss of the batch, a scalar, for the module that it is handed. It may be
                called more than once, with the random numbers of dropout put back in between.

        Returns:
            The loss `[]`, detached.

        Raises:
            TrainingError: the loss is not a finite scalar; the weights have not been changed.
        """
        self.begin()
        self.shrinker.optimizer.zero_grad()
        value = loss(self.module)
        _check(value)
        value.backward()  # type: ignore[no-untyped-call]
        self.learn(value.detach(), loss)
        self.shrinker.optimizer.step()
        self.finish()
        return value.detach()

    def begin(self) -> None:
        """Before the forward of a step."""

    def learn(self, value: Tensor, loss: Loss) -> None:
        """Between the backward of a step and that of the optimizer.

        Args:
            value: the loss of this step `[]`, detached.
            loss: what gave it, for methods that ask again.
        """

    def finish(self) -> None:
        """Behind the optimizer's step."""

    def end_epoch(self) -> list[Change]:
        """Removes what the method has found to be of no use, verified; what was done, perhaps nothing."""
        return []

    def finish_training(self) -> Program:
        """The network for use, a copy; see `for_use`. The one in training stays as it is."""
        return for_use(self.settled())

    def settled(self) -> Program:
        """A copy of the network that training came to."""
        return copy.deepcopy(self.shrinker.program)

    def numbers(self) -> dict[str, float]:
        """What there is to report of an epoch: `history.end_epoch(program, **method.numbers())`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What going on needs beside the program and `shrinker.state_dict()`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave.

        Raises:
            TrainingError: the state is of another method or another network.
        """
        if state:
            raise TrainingError(
                f"a state with {', '.join(sorted(state))}",
                why=f"{type(self).__name__} keeps nothing",
                do="load the state that this method gave",
            )


def for_use(program: Program) -> Program:
    """The network for use, in eval mode, to which the one given is switched too.

    Gates and observers go, norms are folded, units that have become constant go, and layers in a row are
    fused where that is exact and no dearer. Verified.
    """
    return run_pipeline(program.eval(), FOR_USE).program


def _check(value: Tensor) -> None:
    if value.dim() or not bool(torch.isfinite(value)):
        raise TrainingError(
            f"the loss is {'of shape ' + str(list(value.shape)) if value.dim() else value.item()}",
            why="a method reads the mean loss of a batch, a finite number",
            do="reduce it with mean(); or look at the learning rate and the data",
        )
