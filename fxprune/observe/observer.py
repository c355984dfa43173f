"""The base class of all observers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.distributed as dist

from fxprune.errors import OptionError
from fxprune.graph.leaf import Leaf

Tensor = torch.Tensor


class Observer(Leaf):
    """Passes its value through, and counts in train and eval mode until it is frozen.

    Observers do not affect gradients. An empty batch adds nothing.

    Args:
        size: the length of the observed axis; None for one statistic of the whole value.
        device: the device of the counters.

    Attributes:
        frozen: whether counting is stopped.
        reduced: whether the counts of other processes have been merged in.
        seen: buffer `[]`, how many values of each unit have been counted.
    """

    stat = ""
    seen: Tensor

    def __init__(self, size: int | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.frozen = self.reduced = False
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64, device=device))
        for name, start in self.start().items():
            shape = [] if size is None else [size] * start.dim()
            self.register_buffer(name, start.squeeze().expand(shape).clone().to(device))

    def forward(self, value: Tensor, axis: int | None = None, *layer: Any) -> Tensor:
        """Returns the value unchanged, and counts it unless the observer is frozen.

        Args:
            value: a tensor of any shape.
            axis: the axis of the units.
            layer: facts about the layer that reads the value, if the statistic needs them.
        """
        if not self.frozen and value.numel():
            data = value.detach()
            if axis is not None and data.dim() == 1:
                data, axis = data[None], 1
            self.update(data, axis, *layer)
        return value

    @abstractmethod
    def start(self) -> dict[str, Tensor]:
        """Returns the counters before any data; each axis of units has length 1."""

    @abstractmethod
    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        """Counts a batch that is not empty."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Adds the counts of another observer of the same statistic; returns the observer."""

    @abstractmethod
    def unite(self) -> None:
        """Adds the counts of the other processes."""

    @abstractmethod
    def statistics(self) -> dict[str, Tensor]:
        """Returns the statistics of each unit by name; NaN where nothing was counted."""

    def all_reduce(self) -> Self:
        """Merges the counts of all processes into each of them; returns the observer.

        The observer then stops counting until it is reset, so a second call changes nothing. If
        torch.distributed is not initialised, the observer holds the counts of this process alone.
        """
        if not self.reduced and dist.is_available() and dist.is_initialized():
            self.unite()
            self.reduced = True
        self.frozen = True
        return self

    def freeze(self, frozen: bool = True) -> Self:
        """Stops counting, or resumes it with `frozen=False`; returns the observer."""
        self.frozen = frozen
        return self

    @torch.no_grad()
    def reset(self) -> Self:
        """Clears all counts and resumes counting; returns the observer."""
        self.frozen = self.reduced = False
        self.seen.zero_()
        for name, start in self.start().items():
            self.get_buffer(name).copy_(start.squeeze())
        return self

    def table(self) -> dict[str, Any]:
        """Returns the statistics as plain data: a list with one number per unit, and how many values were seen."""
        found = {name: value.tolist() for name, value in self.statistics().items()}
        return {"stat": self.stat, "seen": int(self.seen), **found}

    def extra_repr(self) -> str:
        """Returns the statistic, the number of units and how many values were seen, for `print`."""
        units = max((b.shape[0] for b in self.buffers() if b.dim()), default=1)
        return f"{self.stat}, {units} units, {int(self.seen)} seen"

    def _check(self, other: Observer) -> None:
        if type(other) is not type(self):
            raise OptionError(
                f"an observer of {self.stat} cannot be merged with one of {other.stat}"
            )
        sizes = [[b.shape for b in x.buffers()] for x in (self, other)]
        if sizes[0] != sizes[1]:
            raise OptionError("the observers have different numbers of units and cannot be merged")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the counters to another device; they keep their types when the network is cast."""
        types = {name: b.dtype for name, b in self._buffers.items() if b is not None}
        kept = {name: b for name, b in self._buffers.items() if b is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, kind in types.items():
            now = self.get_buffer(name)
            if now.dtype != kind:
                self._buffers[name] = kept[name].to(now.device)
        return self


class Summed(Observer):
    """An observer whose counters are sums."""

    @torch.no_grad()
    def merge(self, other: Self) -> Self:
        self._check(other)
        for name, buffer in self.named_buffers():
            buffer += other.get_buffer(name).to(buffer.device)
        return self

    def unite(self) -> None:
        for buffer in self.buffers():
            dist.all_reduce(buffer)


def others(value: Tensor, axis: int | None) -> list[int]:
    """Returns all axes of a tensor except one."""
    return [i for i in range(value.dim()) if axis is None or i != axis % value.dim()]
