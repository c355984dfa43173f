"""Slices parameters and buffers; shared tensors stay shared and memory formats are preserved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
import torch

from fxprune.algebra.label import IntArray
from fxprune.distributed import is_sharded, part_like, whole
from fxprune.plan import Kept

LARGE = 32 << 20
LONG = 4
BLOCK = 1 << 16


def slice_tensors(module: torch.nn.Module, kept: Kept) -> None:
    """Replaces every tensor of a module by a sliced copy; a tensor with two names stays one tensor.

    So does a module with two names, whose tensors are sliced once.
    """
    done: dict[int, torch.Tensor] = {}
    before: list[torch.Tensor] = []  # kept, so that no new tensor gets the identity of an old one
    for path, owner in module.named_modules(remove_duplicate=False):
        for store in (owner._parameters, owner._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in done:
                    new = _copy(tensor, kept.get(f"{path}.{name}" if path else name, {}))
                    done[id(tensor)] = done[id(new)] = new
                    before.append(tensor)
                store[name] = done[id(tensor)]


Read = Callable[[str], torch.Tensor]


def cut(read: Read | None, kept: Kept) -> Read | None:
    """Reads what stays of stored tensors; None where there are none."""
    if read is None:
        return None
    return lambda name: slice_axes(read(name), kept.get(name, {}))


def _copy(tensor: torch.Tensor, cut: Mapping[int, IntArray]) -> torch.Tensor:
    small = slice_axes(tensor.detach(), cut)
    if not isinstance(tensor, torch.nn.Parameter):
        return small
    return torch.nn.Parameter(small, requires_grad=tensor.requires_grad)


def slice_axes(tensor: torch.Tensor, cut: Mapping[int, IntArray]) -> torch.Tensor:
    """Returns a copy with only the given positions of some axes, contiguous in its original memory format.

    A sharded tensor is gathered, cut and sharded in the same way: all its processes have to cut it alike.
    """
    if is_sharded(tensor):
        return part_like(slice_axes(whole(tensor), cut), tensor) if cut else tensor.clone()
    layout = memory_format(tensor)
    plain = type(tensor) is torch.Tensor and tensor.device.type == "cpu" and not tensor.is_quantized
    if not cut or tensor.nbytes < LARGE or not plain:
        return _slice_in_turn(tensor, cut, layout)
    order = memory_order(tensor.dim(), layout)
    source = tensor.contiguous(memory_format=layout).permute(order)
    kept = {order.index(axis): positions for axis, positions in cut.items()}
    shape = [len(kept.get(i, range(n))) for i, n in enumerate(source.shape)]
    out = torch.empty(shape, dtype=tensor.dtype)
    if out.numel():
        _gather(source, kept, out)
    return out.permute([order.index(axis) for axis in range(len(order))])


def _slice_in_turn(
    tensor: torch.Tensor, cut: Mapping[int, IntArray], layout: torch.memory_format
) -> torch.Tensor:
    """Slices one axis at a time, on any device, beginning with the axes that lose most."""
    if not cut:
        return tensor.clone(memory_format=layout)
    out = tensor
    for axis, positions in sorted(
        cut.items(), key=lambda item: len(item[1]) / max(1, tensor.shape[item[0]])
    ):
        out = out.index_select(axis, torch.from_numpy(positions).to(out.device))
    return out.contiguous(memory_format=layout)


def _gather(source: torch.Tensor, kept: Mapping[int, IntArray], out: torch.Tensor) -> None:
    """Copies the kept positions of `source` to `out`, both contiguous, without an intermediate copy.

    Both are viewed as rows of pieces; a piece is a run of neighbouring positions that are all kept. If both
    rows and pieces are removed, a few rows are copied at a time so that data needed again is still in the
    cache: long pieces are indexed in the whole tensor, short ones in rows selected before.
    """
    last = max(kept)
    run = run_length(kept[last], source.shape[last])
    piece = run * prod(source.shape[last + 1 :])
    sizes = [*source.shape[:last], source.shape[last] // run]
    axes = [kept.get(i, np.arange(n)) for i, n in enumerate(sizes)]
    axes[last] = kept[last][::run] // run
    inside = np.zeros(1, np.int64)
    for n, positions in zip(sizes[1:], axes[1:], strict=True):
        inside = (inside[:, None] * n + positions).ravel()
    rows, pieces = torch.from_numpy(axes[0]), torch.from_numpy(inside)
    width = prod(sizes[1:])
    source, out = source.view(sizes[0], width, piece), out.view(len(rows), len(pieces), piece)
    if last == 0:
        torch.index_select(source, 0, rows, out=out)
    elif 0 not in kept:
        torch.index_select(source, 1, pieces, out=out)
    else:
        step = max(1, BLOCK // (width if piece < LONG else len(pieces)))
        for start in range(0, len(rows), step):
            some, part = rows[start : start + step], out[start : start + step]
            if piece < LONG:
                torch.index_select(source.index_select(0, some), 1, pieces, out=part)
            else:
                numbers = (some[:, None] * width + pieces).view(-1)
                torch.index_select(source.view(-1, piece), 0, numbers, out=part.view(-1, piece))


def run_length(positions: IntArray, length: int) -> int:
    """Returns the length of the longest piece such that an axis of `length` loses only whole pieces.

    >>> run_length(np.array([2, 3, 6, 7, 8, 9]), 12)
    2
    """
    starts = positions[np.flatnonzero(np.diff(positions, prepend=-2) != 1)]
    ends = positions[np.flatnonzero(np.diff(positions, append=length + 1) != 1)] + 1
    return int(np.gcd.reduce(np.concatenate([starts, ends, [length]])))


def memory_order(dim: int, layout: torch.memory_format) -> list[int]:
    """Returns the axes in the order in which they lie in memory, outermost first."""
    if layout == torch.contiguous_format:
        return list(range(dim))
    return [0, *range(2, dim), 1]


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """Returns channels_last for tensors in that format, else contiguous."""
    if not tensor.is_contiguous():
        if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format
