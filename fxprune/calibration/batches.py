"""Batches on the device of a network, and what of a batch goes into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.errors import OptionError

Inputs = Callable[[Any], Any]
_LABELS = "labels"  # the entry of a dict that is no input


@dataclass(frozen=True)
class Batches:
    """The batches of a loader, moved to the device of the network.

    Attributes:
        loader: what gives batches each time that it is iterated.
        device: of the network; None: wherever they are.
        name: of the argument, for errors.
    """

    loader: Iterable[Any]
    device: torch.device | None
    name: str

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield to_device(batch, self.device)

    def first(self) -> Any:
        """The first batch.

        Raises:
            OptionError: there is none, or the loader can be read once only.
        """
        if not isinstance(self.loader, Iterable):
            raise OptionError(
                f"{self.name} is a {type(self.loader).__name__}, which has no batches",
                do="pass a DataLoader, a list of batches, or an object whose __iter__ starts anew",
            )
        if iter(self.loader) is self.loader:
            raise OptionError(
                f"{self.name} is an iterator",
                why="it can be read only once, and it is read several times",
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


def to_device(batch: Any, device: torch.device | None) -> Any:
    """A batch with its tensors on a device; None: where they are."""
    if device is None:
        return batch
    return pytree.tree_map_only(torch.Tensor, lambda x: x.to(device), batch)


def default_inputs(batch: Any) -> Any:
    """The inputs of a network in a batch: a tensor, the first entry of a pair; of a dict all but `labels`.

    Raises:
        OptionError: the batch is something else.
    """
    if isinstance(batch, torch.Tensor):
        return batch
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != _LABELS}
    if isinstance(batch, tuple | list) and batch:
        return batch[0]
    raise OptionError(
        f"a batch is a {type(batch).__name__}",
        do="say what goes into the network: inputs=lambda batch: ..., or forward=lambda module, batch: module(...)",
    )


def labels_of(batch: Any) -> Any:
    """The labels in a batch: the second entry of a pair, or `labels` of a dict; None where there are none."""
    if isinstance(batch, Mapping):
        return batch.get(_LABELS)
    return batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None


def logits_of(outputs: Any) -> Any:
    """What of the outputs is held against labels: a tensor, or the `logits` of a mapping; None where there is none."""
    if isinstance(outputs, Mapping):
        return outputs.get("logits")
    return outputs if isinstance(outputs, torch.Tensor) else None


def call(module: nn.Module, inputs: Any) -> Any:
    """The outputs of a module for positional inputs (a tensor, a tuple) or keyword inputs (a dict)."""
    args, kwargs = split(inputs)
    return module(*args, **kwargs)


def split(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as positional ones and keyword ones."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}
