"""An operator of our own: a scale and a shift for each channel."""

from __future__ import annotations

import torch


@torch.library.custom_op("fxprune_example::scale_shift", mutates_args=())
def scale_shift(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """x * scale + shift along the last axis of x `[..., c]`; scale and shift are `[c]`."""
    return x * scale + shift


@scale_shift.register_fake
def _(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)
