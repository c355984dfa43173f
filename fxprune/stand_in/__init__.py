"""A copy of a model to run in the model's place, so that a run changes nothing of the user's.

Whatever the model holds is copied: modules, containers, objects, the closures of its hooks. Parameters and
buffers are new objects that share their data, or have their own where the run is with data. Two things cannot be
copied, and are put back in place afterwards: objects that refuse (`Remembered`), and what the model's code
reaches by name rather than through the model, such as attributes of its classes and globals (`outside`). What
a run sets for the whole process or thread, such as the default dtype and device, is put back too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from torch import nn

from fxprune.process.state import settings_kept
from fxprune.stand_in.copier import Copier
from fxprune.stand_in.forget import forget
from fxprune.stand_in.outside import remember_outside
from fxprune.stand_in.remembered import Remembered
from fxprune.torch_private import function_modes_kept

__all__ = ["Remembered", "forget", "runs_alike", "stand_in"]

M = TypeVar("M", bound=nn.Module)


class _Outside(NamedTuple):
    """What code reaches by name, to be put back after each of several runs, and the copies of the last one."""

    remembered: Remembered
    copies: dict[int, Any]


_known: ContextVar[dict[Hashable, _Outside] | None] = ContextVar("_known", default=None)


@contextmanager
def runs_alike() -> Iterator[None]:
    """Within, what code reaches by name is looked up once for all models of the same classes.

    After each run it is put back as before; so nothing else than runs of stand-ins may change it meanwhile.
    """
    if _known.get() is not None:
        yield
        return
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


@contextmanager
def stand_in(model: M, *, own_data: bool = False) -> Iterator[M]:
    """A copy of the model to run; whatever it shares with the model, and what it sets, is put back afterwards.

    The copy keeps nothing of an earlier forward that its classes drop in `train()` (`forget`).

    Args:
        model: stays as it is.
        own_data: copy the data of its parameters and buffers too, for a run that may write them.
    """
    named = () if own_data else (*model.parameters(), *model.buffers())
    copier = Copier(sharing={id(x) for x in named})
    twin = copier.copy_all(model)
    remembered = Remembered(data=own_data)
    for x in copier.shared:
        remembered.add(x)
    outside = _outside(copier, own_data)
    with settings_kept(), function_modes_kept():
        try:
            forget(twin)
            yield twin
        finally:
            outside.put_back()
            remembered.put_back()


def _outside(copier: Copier, data: bool) -> Remembered:
    """What the code of the copied objects reaches by name."""
    known = _known.get()
    key = (data, frozenset(copier.kinds), frozenset(f.__code__ for f in copier.functions))
    if known is not None and key in known:
        found = known[key]
        found.copies.clear()
        found.copies.update(copier.copies)
        return found.remembered
    found = _Outside(Remembered(data=data), dict(copier.copies))
    remember_outside(copier.kinds, copier.functions, *found)
    if known is not None:
        known[key] = found
    return found.remembered
