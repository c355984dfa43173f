"""What all observers have in common."""

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
    """Hands its value on; counts in train and in eval mode until it is frozen.

    No gradient flows through what it counts, and none is changed. A batch without samples adds nothing.

    Args:
        size: length of the observed axis; None for one statistic of the whole value.
        device: of the counters.

    Attributes:
        frozen: whether it has stopped counting.
        reduced: whether the counts of other processes are in it.
        seen: buffer `[]`, how many numbers of each unit have been counted.
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
        """The value itself.

        Args:
            value: of any shape.
            axis: the axis of the units.
            layer: what is known of the layer that reads the value, where the statistic needs it.
        """
        if not self.frozen and value.numel():
            data = value.detach()
            if axis is not None and data.dim() == 1:
                data, axis = data[None], 1
            self.update(data, axis, *layer)
        return value

    @abstractmethod
    def start(self) -> dict[str, Tensor]:
        """The counters before any data, each with an axis of length 1 for each axis of units."""

    @abstractmethod
    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        """Counts a batch that is not empty."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Adds what another observer of the same statistic has counted; returns itself."""

    @abstractmethod
    def unite(self) -> None:
        """Adds what the other processes have counted."""

    @abstractmethod
    def statistics(self) -> dict[str, Tensor]:
        """The statistics of each unit by name; NaN where nothing was counted."""

    def all_reduce(self) -> Self:
        """Merges what all processes have counted into each of them; returns itself.

        It counts no more after that, until it is reset: calling it twice changes nothing. Where
        torch.distributed is not initialised, what this process has counted is all there is.
        """
        if not self.reduced and dist.is_available() and dist.is_initialized():
            self.unite()
            self.reduced = True
        self.frozen = True
        return self

    def freeze(self, frozen: bool = True) -> Self:
        """Stops counting, or goes on; returns itself."""
        self.frozen = frozen
        return self

    @torch.no_grad()
    def reset(self) -> Self:
        """Forgets everything and counts again; returns itself."""
        self.frozen = self.reduced = False
        self.seen.zero_()
        for name, start in self.start().items():
            self.get_buffer(name).copy_(start.squeeze())
        return self

    def table(self) -> dict[str, Any]:
        """The statistics as plain data: lists with a number for each unit, and how many were seen."""
        found = {name: value.tolist() for name, value in self.statistics().items()}
        return {"stat": self.stat, "seen": int(self.seen), **found}

    def extra_repr(self) -> str:
        """Statistic, units and how many numbers were seen."""
        units = max((b.shape[0] for b in self.buffers() if b.dim()), default=1)
        return f"{self.stat}, {units} units, {int(self.seen)} seen"

    def _check(self, other: Observer) -> None:
        if type(other) is not type(self):
            raise OptionError(f"observers of {self.stat} and {other.stat} cannot be merged")
        sizes = [[b.shape for b in x.buffers()] for x in (self, other)]
        if sizes[0] != sizes[1]:
            raise OptionError("observers of different numbers of units cannot be merged")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves to another device; the counters keep their types when the network is cast."""
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
    """All axes but one."""
    return [i for i in range(value.dim()) if axis is None or i != axis % value.dim()]
