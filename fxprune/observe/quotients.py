"""The quotients of a contribution: each input's term in a sum of a layer, divided by that sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F

from fxprune.observe.largest_quotients import at_once, largest_quotients
from fxprune.observe.observer import others

Tensor = torch.Tensor


def of_linear(
    a: Tensor, w: Tensor, known: Tensor, *, signed: bool = True
) -> tuple[Tensor, Tensor, int]:
    """Returns the sum and the maximum of each input's quotients, `[N]` both, and the number of quotients per input.

    Args:
        a: the inputs, `[F, N]`.
        w: the weight, `[M, N]`.
        known: `[N]`, quotients that are known already; the maximum is at least as large.
        signed: whether `a` and `w` may hold negative numbers.
    """
    size = torch.abs if signed else _itself
    inverse = _inverse(a @ w.T, size)
    total = (a * (inverse @ w)).sum(0, dtype=torch.float64)
    bound = (size(a) * size(inverse).amax(1, keepdim=True)).T * size(w).amax(0)[:, None]
    rows = w.T.contiguous()

    def quotients(k: Tensor, f: Tensor) -> Tensor:
        return (rows[k] * inverse[f] * a[f, k, None]).amax(1)

    def all_quotients() -> Tensor:
        step = at_once(inverse.numel())
        parts = [
            (a[:, None, k : k + step] * w[None, :, k : k + step] * inverse[:, :, None]).amax((0, 1))
            for k in range(0, w.shape[1], step)
        ]
        return torch.cat(parts)

    largest = largest_quotients(bound, known, w.shape[0], quotients, all_quotients)
    return total, largest, inverse.numel()


def of_convolution(
    a: Tensor,
    w: Tensor,
    known: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    signed: bool = True,
) -> tuple[Tensor, Tensor, int]:
    """Does the same for a convolution, with `a` as `[N, C, *sizes]` and `w` as `[M, C / groups, *kernel]`."""
    size = torch.abs if signed else _itself
    convolve = (F.conv1d, F.conv2d, F.conv3d)[w.dim() - 3]
    window = (stride, padding, dilation)
    a = a if a.dim() == w.dim() else a[None]
    channels = a.shape[1]
    groups = channels // w.shape[1]
    inverse = _inverse(convolve(a, w, None, *window, groups), size)
    back = torch.ops.aten.convolution_backward(
        *(inverse, a, w, None, *window, False, [0] * len(stride), groups, [True, False, False])
    )[0]
    total = (a * back).flatten(2).sum(2).sum(0, dtype=torch.float64)
    outputs, inputs = w.shape[0] // groups, w.shape[1]
    # By input channel: output j of channel k is the term of k in the sum of j.
    single = w.view(groups, outputs, inputs, -1).transpose(1, 2).reshape(channels, outputs, -1)
    inverse = inverse.view(len(a), groups, outputs, *inverse.shape[2:])
    largest_weight = size(single).amax(1).view(channels, 1, *w.shape[2:])
    bound = convolve(size(a), largest_weight, None, *window, channels)
    bound = bound.view(len(a), groups, inputs, *bound.shape[2:])
    bound = bound * size(inverse).amax(2, keepdim=True)
    bound = bound.flatten(1, 2).transpose(0, 1).flatten(1)
    windows = _Windows(a, w.shape[2:], window, inverse.shape[3:])
    by_place = inverse.flatten(3)

    def quotients(k: Tensor, place: Tensor) -> Tensor:
        terms = torch.bmm(single[k], windows.at(k, place)[:, :, None])[:, :, 0]
        n, p = place // by_place.shape[3], place % by_place.shape[3]
        return (terms * by_place[n, k // inputs, :, p]).amax(1)

    def all_quotients() -> Tensor:
        step = at_once(inverse.numel() // groups)
        parts = []
        for k in range(0, channels, step):
            some = a[:, k : k + step]
            alone = single[k : k + step].reshape(-1, 1, *w.shape[2:])
            terms = convolve(some, alone, None, *window, some.shape[1])
            terms = terms.view(len(a), some.shape[1], outputs, *terms.shape[2:])
            groups_of = torch.arange(k, k + some.shape[1], device=a.device) // inputs
            parts.append((terms * inverse[:, groups_of]).amax(others(terms, 1)))
        return torch.cat(parts)

    width = outputs * single.shape[2]
    largest = largest_quotients(bound, known, width, quotients, all_quotients)
    return total, largest, len(a) * outputs * prod(inverse.shape[3:])


class _Windows:
    """The windows that a convolution reads from one channel at one place.

    Args:
        a: the input, `[N, C, *sizes]`.
        kernel: the sizes of the kernel.
        window: stride, padding and dilation.
        places: the sizes of the convolution's output.
    """

    def __init__(
        self,
        a: Tensor,
        kernel: Sequence[int],
        window: tuple[Sequence[int], ...],
        places: Sequence[int],
    ) -> None:
        stride, padding, dilation = window
        padded = F.pad(a, [n for p in reversed(padding) for n in (p, p)])
        self._flat, self._count = padded.flatten(), prod(places)
        self._sample, self._channel, *steps = padded.stride()
        self._origin = _grid(places, [s * t for s, t in zip(stride, steps, strict=True)], a)
        self._tap = _grid(kernel, [d * t for d, t in zip(dilation, steps, strict=True)], a)

    def at(self, k: Tensor, place: Tensor) -> Tensor:
        """Returns the windows `[n, taps]` of channels `[n]` at places `[n]`, numbered over samples and positions."""
        n, p = place // self._count, place % self._count
        start = n * self._sample + k * self._channel + self._origin[p]
        return self._flat[start[:, None] + self._tap]


def _grid(sizes: Sequence[int], steps: Sequence[int], like: Tensor) -> Tensor:
    """Returns the memory offsets of the points of a grid."""
    found = torch.zeros(1, dtype=torch.int64, device=like.device)
    for size, step in zip(sizes, steps, strict=True):
        found = (found[:, None] + torch.arange(size, device=like.device) * step).flatten()
    return found


def _itself(value: Tensor) -> Tensor:
    return value


def _inverse(sums: Tensor, size: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns 1 / sums, with 0 where a sum is 0 or so small that the quotient would overflow."""
    near = size(sums) < torch.finfo(sums.dtype).tiny
    return torch.where(near, torch.inf, sums).reciprocal_()
