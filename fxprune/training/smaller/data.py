"""What a training reads: batches on the device of the network, what goes into it, its loss and its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils import _pytree as pytree

from fxprune.errors import OptionError
from fxprune.training.errors import TrainingError

Tensor = torch.Tensor
BatchLoss = Callable[[nn.Module, Any], Tensor]
Inputs = Callable[[Any], Any]
# So many batches of the validation data decide about gates: they are read many times.
SETTLE_BATCHES = 8


@dataclass(frozen=True)
class Batches:
    """The batches of a loader, moved to the device of the network.

    Attributes:
        loader: what gives batches each time that it is iterated.
        device: of the network.
        name: of the argument, for errors.
    """

    loader: Iterable[Any]
    device: torch.device
    name: str

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield pytree.tree_map_only(Tensor, lambda x: x.to(self.device), batch)

    def first(self) -> Any:
        """The first batch.

        Raises:
            OptionError: there is none, or the loader can be read once only.
        """
        if iter(self.loader) is self.loader:
            raise OptionError(
                f"{self.name} is an iterator",
                why="it can be read only once, and every epoch reads it",
                do="pass a DataLoader, a list, or an object whose __iter__ starts anew",
            )
        for batch in self:
            return batch
        raise OptionError(
            f"{self.name} has no batches",
            do="check the length of the data set, and the option drop_last of the DataLoader",
        )

    def count(self) -> int:
        """The number of batches; a loader that has no length is read once to find out."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            return sum(1 for _ in self.loader)


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


def default_inputs(batch: Any) -> Any:
    """The inputs of a network in a batch: the first entry of a pair; of a dict all but `labels`.

    Raises:
        OptionError: the batch is something else.
    """
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}
    if isinstance(batch, tuple | list) and batch:
        return batch[0]
    raise OptionError(
        f"a batch is a {type(batch).__name__}",
        do="say what goes into the network: inputs=lambda batch: ...",
    )


def call(module: nn.Module, inputs: Any) -> Any:
    """The outputs of a module for positional inputs (a tensor, a tuple) or keyword inputs (a dict)."""
    args, kwargs = split(inputs)
    return module(*args, **kwargs)


def split(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as positional ones and keyword ones."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


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
