"""Slices parameters and buffers, keeping what they share and how they lie in memory."""

from __future__ import annotations

import numpy as np
import torch

from fxprune.algebra.label import IntArray
from fxprune.plan import Kept


def slice_tensors(module: torch.nn.Module, kept: Kept) -> None:
    """Puts a sliced copy in place of every tensor of a module; tensors under two names stay one."""
    done: dict[int, torch.Tensor] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for store in (owner._parameters, owner._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in done:
                    done[id(tensor)] = _copy(
                        tensor, kept.get(f"{path}.{name}" if path else name, {})
                    )
                store[name] = done[id(tensor)]


def _copy(tensor: torch.Tensor, cut: dict[int, IntArray] | object) -> torch.Tensor:
    small = slice_axes(tensor.detach(), cut)  # type: ignore[arg-type]
    if not isinstance(tensor, torch.nn.Parameter):
        return small
    return torch.nn.Parameter(small, requires_grad=tensor.requires_grad)


def slice_axes(tensor: torch.Tensor, cut: dict[int, IntArray]) -> torch.Tensor:
    """A copy with only the given positions of some axes; contiguous in the memory format it had."""
    out = tensor
    for axis, positions in sorted(
        cut.items(), key=lambda item: len(item[1]) / max(1, tensor.shape[item[0]])
    ):
        out = out.index_select(
            axis, torch.from_numpy(np.ascontiguousarray(positions)).to(out.device)
        )
    layout = memory_format(tensor)
    return (
        out.clone(memory_format=layout) if out is tensor else out.contiguous(memory_format=layout)
    )


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """channels_last for tensors that lie so, else contiguous."""
    if not tensor.is_contiguous():
        if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format
