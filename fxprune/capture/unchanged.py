"""Restores a model after it was used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restores the model afterwards; meanwhile, attention modules do not take their fast path."""
    put_back = remember(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        put_back()


def remember(model: nn.Module) -> Callable[[], None]:
    """Returns a function that restores every attribute, parameter, buffer, hook and flag of the model."""
    saved = [(m, dict(vars(m))) for m in model.modules()]
    inner = [(v, v.copy()) for _, d in saved for v in d.values() if isinstance(v, dict)]

    def put_back() -> None:
        for module, attributes in saved:
            vars(module).clear()
            vars(module).update(attributes)
        for mapping, items in inner:
            mapping.clear()
            mapping.update(items)

    return put_back
