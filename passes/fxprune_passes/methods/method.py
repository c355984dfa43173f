"""What the methods have in common: where they stand in a training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.training import Change, Shrinker, TrainingError
from fxprune.training.history import spell

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

    Attributes:
        steps: of this epoch, those that came to their end.
    """

    # Options that a state belongs to: one saved with others is refused.
    bound: ClassVar[tuple[str, ...]] = ()

    def __init__(self, shrinker: Shrinker) -> None:
        self.shrinker = shrinker
        self.steps = 0

    def __str__(self) -> str:
        numbers = (f"{name} {spell(value)}" for name, value in self.numbers().items())
        return f"{type(self).__name__} of {self.shrinker.program.name}: {', '.join(numbers)}"

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
        try:
            self.shrinker.optimizer.zero_grad()
            value = loss(self.module)
            _check_loss(value)
            value.backward()  # type: ignore[no-untyped-call]
            self.learn(value.detach(), loss)
            self.shrinker.optimizer.step()
        except BaseException:
            self.give_up()
            raise
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
        self.steps += 1

    def give_up(self) -> None:
        """In place of the rest of a step that failed; a loop of its own may leave it to the next `begin`."""

    def end_epoch(self) -> list[Change]:
        """Removes what the method has found to be of no use, verified; what was done, perhaps nothing.

        An epoch without steps changes nothing, and does not count as one.
        """
        if not self.steps:
            return []
        self.steps = 0
        return self.remove()

    def remove(self) -> list[Change]:
        """What `end_epoch` does behind an epoch that had steps."""
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
        return {
            "method": type(self).__name__,
            "network": {n: list(p.shape) for n, p in self.module.named_parameters()},
            "options": {name: getattr(self, name) for name in self.bound},
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave.

        Raises:
            TrainingError: the state is of another method, other options or another network; nothing has changed.
        """
        mine = self.state_dict()
        same = {key: state.get(key) == mine[key] for key in ("method", "options", "network")}
        if not all(same.values()) or state.keys() != mine.keys():
            what = next((key for key, good in same.items() if not good), "method")
            raise TrainingError(
                f"the state is of another {what}"
                if what != "options"
                else "the state is of other options",
                where=_difference(state.get(what), mine[what]),
                do="load the program that was saved with the state, and make the same method of it",
            )
        self.steps = state["steps"]


def for_use(program: Program) -> Program:
    """The network for use, in eval mode, to which the one given is switched too.

    Gates and observers go, norms are folded, units that have become constant go, and layers in a row are
    fused where that is exact and no dearer. Verified.
    """
    return run_pipeline(program.eval(), FOR_USE).program


def check_options(*rows: tuple[str, object, bool, str]) -> None:
    """Options are in their range.

    Args:
        rows: name, value, whether it is good, and what it must be.

    Raises:
        OptionError: the first that is not.
    """
    for name, value, good, must in rows:
        if not good:
            raise OptionError(f"{name} is {value}", do=f"{name} must be {must}")


def _check_loss(value: Tensor) -> None:
    if value.dim() or not bool(torch.isfinite(value)):
        raise TrainingError(
            f"the loss is {'of shape ' + str(list(value.shape)) if value.dim() else value.item()}",
            why="a method reads the mean loss of a batch, a finite number",
            do="reduce it with mean(); or look at the learning rate and the data",
        )


def _difference(theirs: Any, mine: Any) -> str:
    if not isinstance(theirs, Mapping) or not isinstance(mine, Mapping):
        return f"{theirs} for {mine}"
    names = [n for n in {**theirs, **mine} if theirs.get(n) != mine.get(n)]
    return ", ".join(f"{n}: {theirs.get(n)} for {mine.get(n)}" for n in names[:3])
