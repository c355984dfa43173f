"""`Calibration`: the one way in which data enters criteria, statistics, sensitivities and recovery."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from fxprune.calibration.batches import Batches, call, default_inputs, labels_of, logits_of
from fxprune.errors import OptionError, ScoreError

Tensor = torch.Tensor
Forward = Callable[[nn.Module, Any], Any]
Loss = Callable[[Any, Any], Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Calibration:
    """Batches, how they go into a network, and the loss of what comes out.

    Attributes:
        batches: a DataLoader, a list of batches, or another object that gives them each time that it is iterated.
            A batch is what the loader makes: a tensor, a pair (x, y), a dict, or anything else with `forward`.
        forward: called with a module and a batch; calls the module once, and returns its outputs. None: the module is
            called with the batch itself if that is a tensor, with x of a pair, or with all of a dict but "labels".
        loss: called with the outputs and the batch; returns the mean loss of the batch, a tensor `[]`. None: for pairs
            (x, y) the cross-entropy if y has whole numbers, and the mean squared error if it has the shape of the
            output; for a dict with "labels" the cross-entropy of the output or its `logits`.
        limit: no more than so many batches are read; None: all.

    Raises:
        OptionError: there are no batches, or they can be read only once.
    """

    batches: Iterable[Any]
    forward: Forward | None = None
    loss: Loss | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, given in (("forward", self.forward), ("loss", self.loss)):
            if given is not None and (not callable(given)):
                raise OptionError(
                    f"{name} is a {type(given).__name__}, not a function",
                    do="give forward=lambda module, batch: module(...), or loss=lambda outputs, batch: ...",
                )
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"limit is {self.limit}", do="give the number of batches, 1 or more")
        Batches(self.batches, None, "batches").first()

    @classmethod
    def of(cls, data: Calibration | Iterable[Any]) -> Calibration:
        """What was given as data: itself, or batches with all that is the default."""
        return data if isinstance(data, Calibration) else cls(data)

    @property
    def first(self) -> Any:
        """The first batch, as the loader gives it."""
        return Batches(self.batches, None, "batches").first()

    @property
    def has_loss(self) -> bool:
        """Whether batches have a loss: one that was given, or labels."""
        return self.loss is not None or isinstance(labels_of(self.first), Tensor)

    def on(self, device: torch.device | None) -> Iterator[Any]:
        """The batches on a device; None: where they are."""
        return islice(Batches(self.batches, device, "batches"), self.limit)

    def outputs(self, module: nn.Module, batch: Any) -> Any:
        """The outputs of a module on a batch."""
        if self.forward is not None:
            return self.forward(module, batch)
        return call(module, default_inputs(batch))

    def loss_of(self, outputs: Any, batch: Any) -> Tensor:
        """The mean loss `[]` of the outputs of a batch.

        Raises:
            ScoreError: nothing says what the loss is, or it is no finite scalar.
        """
        value = _default_loss(outputs, batch) if self.loss is None else self.loss(outputs, batch)
        if not isinstance(value, Tensor) or value.dim():
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ScoreError(
                f"the loss is {shape}, not a scalar",
                where="Calibration(loss=...)",
                do="return the mean loss of the batch, a tensor with one number and no axes",
            )
        if not bool(torch.isfinite(value)):
            raise ScoreError(
                "the loss is not finite",
                where=f"a loss of {value.item()}",
                do="check the data and the weights for NaN and infinity",
            )
        return value

    def losses(self, module: nn.Module) -> Iterator[Tensor]:
        """The loss of a module `[]` on each batch."""
        for batch in self.on(device_of(module)):
            yield self.loss_of(self.outputs(module, batch), batch)

    def calls(self, device: torch.device | None = None) -> Iterator[Call]:
        """The positional and keyword inputs with which each batch calls a network.

        Raises:
            OptionError: `forward` does not call the module.
        """
        for batch in self.on(device):
            yield self.call_of(batch)

    def call_of(self, batch: Any) -> Call:
        """The positional and keyword inputs with which a batch calls a network.

        Raises:
            OptionError: `forward` does not call the module.
        """
        try:
            self.outputs(_Asked(), batch)
        except _CalledError as called:
            return called.args_given, called.kwargs_given
        raise OptionError(
            "forward does not call the module",
            where="Calibration(forward=...)",
            do="call it once: forward=lambda module, batch: module(batch['image'])",
        )

    @torch.no_grad()
    def mean_loss(self, module: nn.Module) -> float:
        """The mean of the losses of all batches, in the mode of the module."""
        losses = [float(x) for x in self.losses(module)]
        return sum(losses) / len(losses)


class _CalledError(Exception):
    """A module was called."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.args_given, self.kwargs_given = args, kwargs


class _Asked(nn.Module):
    """Stands for a network, to learn what it is called with."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise _CalledError(args, kwargs)


def device_of(module: nn.Module) -> torch.device | None:
    """The device of a module's first parameter or buffer; None where it has none, or only shapes."""
    tensors = (*module.parameters(), *module.buffers())
    return next((t.device for t in tensors if not t.is_meta), None)


def _default_loss(outputs: Any, batch: Any) -> Tensor:
    """The loss of a classifier or a regression; see `Calibration`."""
    labels, found = labels_of(batch), logits_of(outputs)
    if isinstance(labels, Tensor) and isinstance(found, Tensor):
        if not labels.is_floating_point():
            return _classified(found, labels.long())
        if labels.shape == found.shape:
            return mse_loss(found, labels)
    raise ScoreError(
        "nothing says what the loss of a batch is",
        where="Calibration(batches)",
        why=f"a batch is {_kind(batch)}, and the network returns {_kind(outputs)}",
        do="give the loss: fp.Calibration(batches, loss=lambda outputs, batch: ...)",
    )


def _classified(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy with classes on axis 1, or on the last one where only that fits the labels."""
    if logits.shape[:-1] == labels.shape and logits.dim() != 2:
        return cross_entropy(logits.flatten(0, -2), labels.flatten())
    return cross_entropy(logits, labels)


def _kind(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {list(x.shape)}"
    if isinstance(x, tuple | list):
        return f"a {type(x).__name__} of {len(x)}: {', '.join(map(_kind, x[:3]))}"
    return f"a {type(x).__name__}"
