"""Which numbers of a model its code reads while it runs: one that is not read decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fxprune.process.lock import alone
from fxprune.write_back.slots import Slot

_BASES = (nn.Module, object)
_OWN = (
    nn.Module.__module__
)  # reads its attributes by `__dict__`, whatever the model's code asks for


class Reads:
    """Finds out which of some slots are read; a container is read with all that is in it.

    Args:
        slots: to watch.

    Attributes:
        found: those that were read.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self.found: set[Slot] = set()
        self._attributes: dict[tuple[int, str], set[Slot]] = {}
        self._held: dict[int, set[Slot]] = {}

    def watch(self, model: nn.Module) -> None:
        """From now on, a model is the one that is run."""
        self._attributes, self._held = {}, {}  # this itself reads
        attributes: dict[tuple[int, str], set[Slot]] = {}
        held: dict[int, set[Slot]] = {}
        for slot in self._slots:
            module = model.get_submodule(slot.path)
            if any("__getattribute__" in vars(k) for k in type(module).__mro__ if k not in _BASES):
                self.found.add(slot)  # what such a class gives out is not seen
            for name in (slot.trail[0], "__dict__"):
                attributes.setdefault((id(module), name), set()).add(slot)
            for i in range(1, len(slot.trail)):
                holder = Slot(slot.path, slot.kind, slot.trail[:i], None).get(model)
                held.setdefault(id(holder), set()).add(slot)
        self._attributes, self._held = attributes, held

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within, whatever the modules of the model are asked for is recorded."""
        before = vars(nn.Module).get("__getattribute__")
        inner: Any = nn.Module.__getattribute__

        def read(module: Any, name: str) -> Any:
            value = inner(module, name)
            slots = self._attributes.get((id(module), name))
            if slots and (name != "__dict__" or sys._getframe(1).f_globals["__name__"] != _OWN):
                self.found |= slots
            if id(value) in self._held:
                self.found |= self._held[id(value)]
            return value

        with alone(), torch.compiler.set_stance("force_eager"):
            nn.Module.__getattribute__ = read  # type: ignore[method-assign]
            try:
                yield
            finally:
                if before is None:
                    del nn.Module.__getattribute__
                else:
                    nn.Module.__getattribute__ = before  # type: ignore[method-assign]
