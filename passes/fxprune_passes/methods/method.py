"""The base class of the training-time methods: the places in a training loop where they act."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.training import Change, Shrinker, TrainingError
from fxprune.training.history import spell

Tensor = torch.Tensor
Loss = Callable[[nn.Module], Tensor]
When = Literal["cheaper", "always"]
FOR_USE = "delete-gated | remove-observers | fold-batchnorm | dead-units | fuse-linear{when=%s} | dead-code"


class Method:
    """A controller next to a training loop: it observes the steps and shrinks the network between epochs.

    The short form of a loop calls `method.step(loss)` for each batch and `method.end_epoch()` after each epoch.
    A loop with its own steps (gradient clipping, mixed precision, accumulation) writes out what `step` does:

        method.begin()
        optimizer.zero_grad()
        value = loss(method.module)
        value.backward()
        method.learn(value.detach(), loss)
        optimizer.step()
        method.finish()

    After training, `method.finish_training()` returns the network for inference.

    Args:
        shrinker: the shrinker of the network in training and its optimizer; gates and observers are inserted there.

    Attributes:
        steps: the completed steps of this epoch.
    """

    # The options a state depends on: a state that was saved with other values is refused.
    bound: ClassVar[tuple[str, ...]] = ()

    def __init__(self, shrinker: Shrinker) -> None:
        self.shrinker = shrinker
        self.steps = 0

    def __str__(self) -> str:
        numbers = (f"{name} {spell(value)}" for name, value in self.numbers().items())
        return f"{type(self).__name__} of {self.shrinker.program.name}: {', '.join(numbers)}"

    @property
    def module(self) -> nn.Module:
        """The current network; shrinking replaces it by another one."""
        return self.shrinker.module

    def step(self, loss: Loss) -> Tensor:
        """Runs one training step.

        Args:
            loss: returns the mean loss of the batch, a scalar, for the module that it is given. It may be
                called more than once; the random state of dropout is restored in between.

        Returns:
            The loss `[]`, detached.

        Raises:
            TrainingError: the loss is not a finite scalar; the weights are unchanged.
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
        """Runs before the forward pass of a step."""

    def learn(self, value: Tensor, loss: Loss) -> None:
        """Runs between the backward pass of a step and the step of the optimizer.

        Args:
            value: the loss of this step `[]`, detached.
            loss: the function that returned it, for methods that evaluate it again.
        """

    def finish(self) -> None:
        """Runs after the step of the optimizer."""
        self.steps += 1

    def give_up(self) -> None:
        """Runs instead of the rest of a failed step; a custom loop may leave this to the next `begin`."""

    def end_epoch(self) -> list[Change]:
        """Removes what the method has found to be dispensable, verified; returns the changes, possibly none.

        An epoch without steps changes nothing and is not counted.
        """
        if not self.steps:
            return []
        self.steps = 0
        return self.remove()

    def remove(self) -> list[Change]:
        """Performs the removals of `end_epoch` after an epoch with steps."""
        return []

    def finish_training(self) -> Program:
        """A copy of the network for inference, see `for_use`; the network in training stays unchanged."""
        return for_use(self.settled())

    def settled(self) -> Program:
        """A copy of the network that training has produced, whole if it is sharded: call it on all processes."""
        return self.shrinker.whole_program()

    def numbers(self) -> dict[str, float]:
        """The numbers to report for an epoch: `history.end_epoch(program, **method.numbers())`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state needed to resume, besides the program and `shrinker.state_dict()`."""
        return {
            "method": type(self).__name__,
            "network": {n: list(p.shape) for n, p in self.module.named_parameters()},
            "options": {name: getattr(self, name) for name in self.bound},
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state from `state_dict`.

        Raises:
            TrainingError: the state belongs to another method, other options or another network; nothing has changed.
        """
        mine = self.state_dict()
        same = {key: state.get(key) == mine[key] for key in ("method", "options", "network")}
        if not all(same.values()) or state.keys() != mine.keys():
            what = next((key for key, good in same.items() if not good), "method")
            raise TrainingError(
                f"the state belongs to another {what}"
                if what != "options"
                else "the state belongs to other options",
                where=_difference(state.get(what), mine[what]),
                do="load the program that was saved with the state, and create the same method from it",
            )
        self.steps = state["steps"]


def for_use(program: Program, *, when: When = "cheaper", verify: bool = True) -> Program:
    """The network for inference, in eval mode; the given program is switched to eval mode, too.

    Gates, observers and constant units are removed, batch norms are folded, and consecutive layers are fused
    where that is exact.

    Args:
        program: a trained network.
        when: cheaper: fuse where the fused layer costs no more than its parts; always: wherever it is exact.
        verify: whether each pass is verified.
    """
    return run_pipeline(program.eval(), FOR_USE % when, verify=verify).program


def check_options(*rows: tuple[str, object, bool, str]) -> None:
    """Checks that options are in their ranges.

    Args:
        rows: for each option its name, its value, whether that is valid, and what it must be.

    Raises:
        OptionError: an option is out of its range; the first such option is named.
    """
    for name, value, good, must in rows:
        if not good:
            raise OptionError(f"{name} is {value}", do=f"{name} must be {must}")


def _check_loss(value: Tensor) -> None:
    if value.dim() or not bool(torch.isfinite(value)):
        raise TrainingError(
            f"the loss is {'of shape ' + str(list(value.shape)) if value.dim() else value.item()}",
            why="a method needs the mean loss of a batch as a finite number",
            do="reduce it with mean(), or check the learning rate and the data",
        )


def _difference(theirs: Any, mine: Any) -> str:
    if not isinstance(theirs, Mapping) or not isinstance(mine, Mapping):
        return f"{theirs} instead of {mine}"
    names = [n for n in {**theirs, **mine} if theirs.get(n) != mine.get(n)]
    return ", ".join(f"{n}: {theirs.get(n)} instead of {mine.get(n)}" for n in names[:3])
