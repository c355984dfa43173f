"""A model that is as it was before it ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Puts every attribute, buffer, hook and flag of the model back afterwards; attention takes no fast path."""
    saved = [(m, dict(vars(m))) for m in model.modules()]
    inner = [(v, v.copy()) for _, d in saved for v in d.values() if isinstance(v, dict)]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, attributes in saved:
            vars(module).clear()
            vars(module).update(attributes)
        for mapping, items in inner:
            mapping.clear()
            mapping.update(items)
