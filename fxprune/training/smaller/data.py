"""What a training reads: batches on the device of the network, what goes into it, its loss and its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fxprune.calibration.batches import Batches, Inputs, call, default_inputs
from fxprune.errors import OptionError
from fxprune.training.errors import TrainingError

Tensor = torch.Tensor
BatchLoss = Callable[[nn.Module, Any], Tensor]
# So many batches of the validation data decide about gates: they are read many times.
SETTLE_BATCHES = 8


@dataclass(frozen=True)
class Data:
    """What a training reads.

    Attributes:
        train: the batches of an epoch.
        validation: batches to measure on, or None.
        loss: the loss of a module on a batch.
        inputs: what goes into the network of a batch.
        first: a batch of `train`.
        classes: whether batches are pairs (x, y) of a classifier, so that an accuracy can be measured.
    """

    train: Batches
    validation: Batches | None
    loss: BatchLoss
    inputs: Inputs
    first: Any
    classes: bool

    @classmethod
    def read(
        cls,
        network: nn.Module,
        loader: Iterable[Any],
        validation: Iterable[Any] | None,
        loss: BatchLoss | None,
        inputs: Inputs | None,
    ) -> Data:
        """Reads the first batch; for the arguments see `train_smaller`.

        Raises:
            OptionError: a loader cannot be used, or the batches need a loss or inputs that are not given.
            TrainingError: the network has no parameter that trains.
        """
        trains = next((p for p in network.parameters() if p.requires_grad), None)
        if trains is None:
            raise TrainingError(
                "no parameter of the model trains",
                do="set requires_grad_() on those that are to train",
            )
        train = Batches(loader, trains.device, "loader")
        first = train.first()
        held = None if validation is None else Batches(validation, trains.device, "validation")
        if held is not None:
            held.first()
        if loss is None and not (isinstance(first, tuple | list) and len(first) == 2):
            raise OptionError(
                f"a batch is a {type(first).__name__}, not a pair (x, y)",
                do="say what the loss of a batch is: loss=lambda module, batch: ...",
            )
        into = inputs or default_inputs

        def cross(module: nn.Module, batch: Any) -> Tensor:
            return cross_entropy(call(module, into(batch)), batch[1])

        return cls(train, held, loss or cross, into, first, loss is None)

    @property
    def example(self) -> Any:
        """What goes into the network of the first batch."""
        return self.inputs(self.first)

    def loss_on(self, batch: Any) -> Callable[[nn.Module], Tensor]:
        """The loss of a module on a batch."""
        return lambda module: self.loss(module, batch)

    def settle_on(self) -> Callable[[nn.Module], Tensor] | None:
        """The mean loss of a module over some validation data `[]`, with its gradient; None without such data."""
        if self.validation is None:
            return None
        batches = list(islice(self.validation, SETTLE_BATCHES))
        return lambda module: torch.stack([self.loss(module, b) for b in batches]).mean()

    @torch.no_grad()
    def judge(self, module: nn.Module) -> dict[str, float]:
        """The mean loss and the share of correct classes over the validation data, in eval mode; empty without.

        Args:
            module: its mode is restored afterwards.
        """
        if self.validation is None:
            return {}
        training, losses = module.training, list[float]()
        right = seen = 0
        module.eval()
        try:
            for batch in self.validation:
                losses.append(float(self.loss(module, batch)))
                if self.classes:
                    correct = call(module, self.inputs(batch)).argmax(1) == batch[1]
                    right, seen = right + int(correct.sum()), seen + correct.numel()
        finally:
            module.train(training)
        accuracy = {"accuracy": right / seen} if seen else {}
        return {"validation_loss": sum(losses) / len(losses), **accuracy}


def check_loss(module: nn.Module, batch: Any, loss: BatchLoss) -> None:
    """Computes a loss once, on a copy of the network that is thrown away.

    Raises:
        TrainingError: it is not a finite scalar with a gradient.
    """
    value = loss(module, batch)
    do = "let loss(module, batch) return the mean loss of the batch, a tensor with one number that has a gradient"
    if not isinstance(value, Tensor):
        raise TrainingError(f"the loss is a {type(value).__name__}", do=do)
    if value.dim():
        raise TrainingError(f"the loss is of shape {list(value.shape)}", do=do)
    if not value.requires_grad:
        raise TrainingError(
            "the loss has no gradient",
            why="it does not depend on a parameter that trains, or was detached",
            do=do,
        )
    if not bool(torch.isfinite(value)):
        raise TrainingError(f"the loss of the first batch is {value.item()}", do="check the data")
