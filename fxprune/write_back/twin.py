"""A copy of a model that shares its tensors, and a model put back as it was where something fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from fxprune.capture.failure import first_line
from fxprune.errors import PlanError
from fxprune.stand_in import Remembered
from fxprune.stand_in.copier import Copier

M = TypeVar("M", bound=nn.Module)


def twin_of(model: M) -> M:
    """Returns a copy of the module tree and its attributes that shares the tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    try:
        return copy.deepcopy(model, {id(t): t for t in tensors})
    except Exception as error:
        copier = Copier(sharing={id(t) for t in tensors})
        twin = copier.copy_all(model)
        if not copier.shared:  # it goes around what a class does when its entries are set
            return twin
        raise PlanError(
            f"{type(model).__name__} cannot be copied",
            why=f"{type(error).__name__}: {first_line(error)}",
            do="call write_back(model, plan, inplace=True)",
        ) from error


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Puts the model back as it was if the block raises."""
    remembered = Remembered()
    remembered.add(model)
    try:
        yield
    except BaseException:
        remembered.put_back()
        raise
