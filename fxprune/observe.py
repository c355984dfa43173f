"""Observers: leaf modules that hand a value on and gather running statistics of it, unit by unit.

Memory is constant: counts are 64-bit integers and sums are in float64, so that batches and processes
merge to what one pass over all of the data gives; nothing is an average of averages.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from math import log, prod
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tabulate import tabulate
from torch import fx, nn

from fxprune.errors import OptionError
from fxprune.leaf import Leaf, leaf_of
from fxprune.program import Program

Tensor = torch.Tensor
Stat = Literal["on-fraction", "entropy", "mean", "max", "contribution", "covariance"]

# Elements of the largest temporary array in the search for the largest contribution.
CHUNK = 1 << 20
# Places of each unit that are looked at first, and the share of all places from which on all of them are.
FIRST, MANY = 16, 0.25


class Observer(Leaf):
    """Hands its value on; counts in train and in eval mode until it is frozen.

    No gradient flows through what it counts, and none is changed. A batch without samples adds nothing.

    Args:
        size: length of the observed axis; None for one statistic of the whole value.
        device: of the counters.

    Attributes:
        frozen: whether it has stopped counting.
        reduced: whether the counts of other processes are in it.
        seen: buffer `[]`, how many numbers of each unit have been counted.
    """

    stat = ""
    seen: Tensor

    def __init__(self, size: int | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.frozen = self.reduced = False
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64, device=device))
        for name, start in self.start().items():
            shape = [] if size is None else [size] * start.dim()
            self.register_buffer(name, start.squeeze().expand(shape).clone().to(device))

    def forward(self, value: Tensor, axis: int | None = None, *layer: Any) -> Tensor:
        """The value itself.

        Args:
            value: of any shape.
            axis: the axis of the units.
            layer: what is known of the layer that reads the value, where the statistic needs it.
        """
        if not self.frozen and value.numel():
            data = value.detach()
            if axis is not None and data.dim() == 1:
                data, axis = data[None], 1
            self.update(data, axis, *layer)
        return value

    @abstractmethod
    def start(self) -> dict[str, Tensor]:
        """The counters before any data, each with an axis of length 1 for each axis of units."""

    @abstractmethod
    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        """Counts a batch that is not empty."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Adds what another observer of the same statistic has counted; returns itself."""

    @abstractmethod
    def unite(self) -> None:
        """Adds what the other processes have counted."""

    @abstractmethod
    def statistics(self) -> dict[str, Tensor]:
        """The statistics of each unit by name; NaN where nothing was counted."""

    def all_reduce(self) -> Self:
        """Merges what all processes have counted into each of them; returns itself.

        It counts no more after that, until it is reset: calling it twice changes nothing. Where
        torch.distributed is not initialised, what this process has counted is all there is.
        """
        if not self.reduced and dist.is_available() and dist.is_initialized():
            self.unite()
            self.reduced = True
        self.frozen = True
        return self

    def freeze(self, frozen: bool = True) -> Self:
        """Stops counting, or goes on; returns itself."""
        self.frozen = frozen
        return self

    @torch.no_grad()
    def reset(self) -> Self:
        """Forgets everything and counts again; returns itself."""
        self.frozen = self.reduced = False
        self.seen.zero_()
        for name, start in self.start().items():
            self.get_buffer(name).copy_(start.squeeze())
        return self

    def table(self) -> dict[str, Any]:
        """The statistics as plain data: lists with a number for each unit, and how many were seen."""
        found = {name: value.tolist() for name, value in self.statistics().items()}
        return {"stat": self.stat, "seen": int(self.seen), **found}

    def extra_repr(self) -> str:
        """Statistic, units and how many numbers were seen."""
        units = max((b.shape[0] for b in self.buffers() if b.dim()), default=1)
        return f"{self.stat}, {units} units, {int(self.seen)} seen"

    def _check(self, other: Observer) -> None:
        if type(other) is not type(self):
            raise OptionError(f"observers of {self.stat} and {other.stat} cannot be merged")
        sizes = [[b.shape for b in x.buffers()] for x in (self, other)]
        if sizes[0] != sizes[1]:
            raise OptionError("observers of different numbers of units cannot be merged")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves to another device; the counters keep their types when the network is cast."""
        types = {name: b.dtype for name, b in self._buffers.items() if b is not None}
        kept = {name: b for name, b in self._buffers.items() if b is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, kind in types.items():
            now = self.get_buffer(name)
            if now.dtype != kind:
                self._buffers[name] = kept[name].to(now.device)
        return self


class _Summed(Observer):
    """An observer whose counters are sums."""

    @torch.no_grad()
    def merge(self, other: Self) -> Self:
        self._check(other)
        for name, buffer in self.named_buffers():
            buffer += other.get_buffer(name).to(buffer.device)
        return self

    def unite(self) -> None:
        for buffer in self.buffers():
            dist.all_reduce(buffer)


class OnFraction(_Summed):
    """How often each unit is on: above 0. Entropy follows from it (arXiv 2308.06619).

    With p the fraction of the numbers above 0, over samples and positions, the entropy in bits is
    H = -p log2 p - (1 - p) log2 (1 - p).

    Attributes:
        on: buffer `[size]`, how many numbers of each unit were above 0.
    """

    stat = "on-fraction"
    on: Tensor

    def start(self) -> dict[str, Tensor]:
        return {"on": torch.zeros(1, dtype=torch.int64)}

    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        size = value.numel()
        each = size // self.on.numel()
        self.on += _count_above(value, _others(value, axis), each)
        self.seen += each

    def fraction(self) -> Tensor:
        """The fraction of numbers above 0, by unit, in float64."""
        return self.on.double() / self.seen

    def entropy(self) -> Tensor:
        """Entropy in bits, by unit; 0 for a unit that is always on or always off."""
        p = self.fraction()
        return 0 - (torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / log(2)

    def layer_entropy(self, *, plain: bool = False) -> float:
        """The mean entropy of the units that are neither always on nor always off; 0 if there is none.

        Args:
            plain: take the mean over all units.
        """
        entropy = self.entropy().reshape(-1)
        if not plain:
            mixed = (self.on > 0) & (self.on < self.seen)
            entropy = entropy[mixed.reshape(-1)]
        return float(entropy.mean()) if entropy.numel() else 0.0

    def statistics(self) -> dict[str, Tensor]:
        return {"on": self.on, "on-fraction": self.fraction(), "entropy": self.entropy()}


def _count_above(value: Tensor, dims: list[int], each: Any) -> Tensor:
    """How many numbers of each unit are above 0; `each` is how many it has."""
    if isinstance(each, int) and each <= 2**24 and not torch.compiler.is_compiling():
        # Sums of ones in float32 are exact up to there, and take a third of the time of integers.
        above = torch.empty_like(value, dtype=torch.float32)
        return torch.gt(value, 0, out=above).sum(dims).to(torch.int64)
    # A free size is not asked: torch.export would bound the batch by the answer.
    short = isinstance(each, int) and each < 2**31
    return (value > 0).sum(dims, dtype=torch.int32 if short else torch.int64)


class Mean(_Summed):
    """The mean of each unit.

    Attributes:
        total: buffer `[size]`, the sum of the numbers of each unit.
    """

    stat = "mean"
    total: Tensor

    def start(self) -> dict[str, Tensor]:
        return {"total": torch.zeros(1, dtype=torch.float64)}

    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        self.total += value.sum(_others(value, axis), dtype=torch.float64)
        self.seen += value.numel() // self.total.numel()

    def statistics(self) -> dict[str, Tensor]:
        return {"mean": self.total / self.seen}


class Maximum(Observer):
    """The largest number of each unit.

    Attributes:
        largest: buffer `[size]`; minus infinity before any data.
    """

    stat = "max"
    largest: Tensor

    def start(self) -> dict[str, Tensor]:
        return {"largest": torch.full((1,), float("-inf"), dtype=torch.float64)}

    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        dims = _others(value, axis)
        new = value.amax(dims) if dims else value
        self.largest.copy_(torch.maximum(self.largest, new))
        self.seen += value.numel() // self.largest.numel()

    @torch.no_grad()
    def merge(self, other: Self) -> Self:
        self._check(other)
        self.largest.copy_(torch.maximum(self.largest, other.largest.to(self.largest.device)))
        self.seen += other.seen.to(self.seen.device)
        return self

    def unite(self) -> None:
        dist.all_reduce(self.seen)
        dist.all_reduce(self.largest, dist.ReduceOp.MAX)

    def statistics(self) -> dict[str, Tensor]:
        nothing = torch.full_like(self.largest, float("nan"))
        return {"max": torch.where(self.seen > 0, self.largest, nothing)}


class Covariance(Observer):
    """Means and covariances of the units; moments of batches merge exactly.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979): S = S_a + S_b + d d^T n_a n_b / n with d the difference of the means.

    Attributes:
        average: buffer `[size]`, the mean of each unit.
        scatter: buffer `[size, size]`, the sum of products of deviations from the means.
    """

    stat = "covariance"
    average: Tensor
    scatter: Tensor

    def start(self) -> dict[str, Tensor]:
        zeros = torch.zeros(1, 1, dtype=torch.float64)
        return {"average": zeros[0], "scatter": zeros}

    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        size = self.average.numel()
        rows = value if axis is None else value.movedim(axis, -1)
        rows = rows.reshape(-1, size).to(self.average.dtype)
        mean = rows.mean(0)
        rows = rows - mean
        self._add(rows.shape[0], mean, rows.T @ rows)

    def _add(self, count: Any, mean: Tensor, scatter: Tensor) -> None:
        """Takes up moments; counts are numbers or tensors."""
        total = self.seen + count
        away = (mean - self.average.reshape(-1)).reshape(-1)
        share = count / total.clamp(min=1).to(self.average.dtype)
        both = scatter + torch.outer(away, away) * (self.seen * share)
        self.scatter += both.reshape(self.scatter.shape)
        self.average += (away * share).reshape(self.average.shape)
        self.seen.copy_(total)

    @torch.no_grad()
    def merge(self, other: Self) -> Self:
        self._check(other)
        seen, average, scatter = (
            b.to(self.seen.device) for b in (other.seen, other.average, other.scatter)
        )
        self._add(seen, average.reshape(-1), scatter.reshape(average.numel(), -1))
        return self

    def unite(self) -> None:
        seen, own = self.seen.clone(), self.average.clone()
        total = own * seen
        dist.all_reduce(self.seen)
        dist.all_reduce(total)
        self.average.copy_(total / self.seen.clamp(min=1))
        away = (own - self.average).reshape(-1)
        self.scatter += (torch.outer(away, away) * seen).reshape(self.scatter.shape)
        dist.all_reduce(self.scatter)

    def covariance(self) -> Tensor:
        """The covariances `[size, size]` of the data seen, divided by the count."""
        return self.scatter / self.seen

    def statistics(self) -> dict[str, Tensor]:
        covariance = self.covariance()
        variance = covariance.diagonal() if covariance.dim() else covariance
        mean = torch.where(self.seen > 0, self.average, float("nan"))
        return {"mean": mean, "variance": variance, "covariance": covariance}


class Contribution(Observer):
    """How much each unit adds to what the next layer sums up.

    A layer's output j at sample and position f sums w_kj a_kf over its inputs k. Over all F samples and
    positions and all M outputs,

        C_avg(k) = 1/(F M) sum_f sum_j w_kj a_kf / sum_i w_ij a_if
        C_max(k) = max over j, f of    w_kj a_kf / sum_i w_ij a_if

    with absolute values |w_kj| |a_kf| unless `signed`. A quotient by 0 counts as 0. For a convolution the
    term of k is the sum over the window of the kernel; padding and all groups are as the layer has them.

    The F x M x N array is never made. C_avg is one product for the sums and one for their inverses. For C_max
    every quotient of k at f is bounded by

        max_j q_kjf <= |a_kf| max_j |w_kj| * max_j |1 / sum_i w_ij a_if|

    which costs next to nothing; the quotients themselves are worked out where the bound is above the largest one
    known, most often at a few places in a hundred, in pieces of at most `CHUNK` elements. Exact but for rounding.

    Args:
        size: number of inputs of the layer.
        device: of the counters.
        signed: leave the signs on: terms may cancel, and quotients grow without bound.

    Attributes:
        total: buffer `[size]`, the sum of the quotients.
        largest: buffer `[size]`, the largest quotient.
    """

    stat = "contribution"
    total: Tensor
    largest: Tensor

    def __init__(
        self,
        size: int | None = None,
        device: torch.device | str | None = None,
        *,
        signed: bool = False,
    ) -> None:
        super().__init__(size, device)
        self.signed = signed

    def start(self) -> dict[str, Tensor]:
        return {
            "total": torch.zeros(1, dtype=torch.float64),
            "largest": torch.full((1,), float("-inf"), dtype=torch.float64),
        }

    def update(self, value: Tensor, axis: int | None, *layer: Any) -> None:
        """Counts a batch.

        Args:
            value: what the layer reads.
            axis: of its channels.
            layer: weight `[outputs, inputs / groups, *kernel]`; for a convolution its stride, padding
                and dilation too.
        """
        assert axis is not None
        weight, *window = layer
        exact = torch.promote_types(value.dtype, torch.float32)
        with torch.autocast(value.device.type, enabled=False):
            a, w = value.to(exact), weight.detach().to(exact)
            if not self.signed:
                a, w = a.abs(), w.abs()
            if window:
                self._add(*_of_convolution(a, w, self.largest, *window))
            else:
                rows = a.movedim(axis, -1).flatten(0, -2)
                self._add(*_of_linear(rows, w, self.largest))

    def _add(self, total: Tensor, largest: Tensor, terms: int) -> None:
        self.total += total
        self.largest.copy_(torch.maximum(self.largest, largest))
        self.seen += terms

    @torch.no_grad()
    def merge(self, other: Self) -> Self:
        self._check(other)
        self._add(*(getattr(other, n).to(self.seen.device) for n in ("total", "largest", "seen")))
        return self

    def unite(self) -> None:
        dist.all_reduce(self.seen)
        dist.all_reduce(self.total)
        dist.all_reduce(self.largest, dist.ReduceOp.MAX)

    def statistics(self) -> dict[str, Tensor]:
        nothing = torch.full_like(self.largest, float("nan"))
        largest = torch.where(self.seen > 0, self.largest, nothing)
        return {"average": self.total / self.seen, "largest": largest}


def _of_linear(a: Tensor, w: Tensor, known: Tensor) -> tuple[Tensor, Tensor, int]:
    """Sum and maximum of the quotients by input, and how many each has.

    Args:
        a: `[F, N]`.
        w: `[M, N]`.
        known: `[N]`, quotients that are known already; the maximum is at least that.
    """
    inverse = _inverse(a @ w.T)
    total = (a * (inverse @ w)).sum(0, dtype=torch.float64)
    bound = (a.abs() * inverse.abs().amax(1, keepdim=True)).T * w.abs().amax(0)[:, None]
    rows = w.T.contiguous()

    def quotients(k: Tensor, f: Tensor) -> Tensor:
        return (rows[k] * inverse[f] * a[f, k, None]).amax(1)

    def all_quotients() -> Tensor:
        step = max(1, CHUNK // max(1, inverse.numel()))
        parts = [
            (a[:, None, k : k + step] * w[None, :, k : k + step] * inverse[:, :, None]).amax((0, 1))
            for k in range(0, w.shape[1], step)
        ]
        return torch.cat(parts)

    largest = _largest(bound, known, w.shape[0], quotients, all_quotients)
    return total, largest, inverse.numel()


def _of_convolution(
    a: Tensor,
    w: Tensor,
    known: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor, int]:
    """The same for a convolution; a is `[N, C, *sizes]`, w `[M, C / groups, *kernel]`."""
    convolve = (F.conv1d, F.conv2d, F.conv3d)[w.dim() - 3]
    window = (stride, padding, dilation)
    a = a if a.dim() == w.dim() else a[None]
    channels = a.shape[1]
    groups = channels // w.shape[1]
    inverse = _inverse(convolve(a, w, None, *window, groups))
    back = torch.ops.aten.convolution_backward(
        *(inverse, a, w, None, *window, False, [0] * len(stride), groups, [True, False, False])
    )[0]
    total = (a * back).flatten(2).sum(2).sum(0, dtype=torch.float64)
    outputs, inputs = w.shape[0] // groups, w.shape[1]
    # By input channel: output j of channel k is the term of k in the sum of j.
    single = w.view(groups, outputs, inputs, -1).transpose(1, 2).reshape(channels, outputs, -1)
    inverse = inverse.view(len(a), groups, outputs, *inverse.shape[2:])
    bound = convolve(
        a.abs(), single.abs().amax(1).view(channels, 1, *w.shape[2:]), None, *window, channels
    )
    bound = bound.view(len(a), groups, inputs, *bound.shape[2:])
    bound = bound * inverse.abs().amax(2, keepdim=True)
    bound = bound.flatten(1, 2).transpose(0, 1).flatten(1)
    windows = _Windows(a, w.shape[2:], window, inverse.shape[3:])
    by_place = inverse.flatten(3)

    def quotients(k: Tensor, place: Tensor) -> Tensor:
        terms = torch.bmm(single[k], windows.at(k, place)[:, :, None])[:, :, 0]
        n, p = place // by_place.shape[3], place % by_place.shape[3]
        return (terms * by_place[n, k // inputs, :, p]).amax(1)

    def all_quotients() -> Tensor:
        step = max(1, CHUNK // max(1, inverse.numel() // groups))
        parts = []
        for k in range(0, channels, step):
            some = a[:, k : k + step]
            alone = single[k : k + step].reshape(-1, 1, *w.shape[2:])
            terms = convolve(some, alone, None, *window, some.shape[1])
            terms = terms.view(len(a), some.shape[1], outputs, *terms.shape[2:])
            groups_of = torch.arange(k, k + some.shape[1], device=a.device) // inputs
            parts.append((terms * inverse[:, groups_of]).amax(_others(terms, 1)))
        return torch.cat(parts)

    width = outputs * single.shape[2]
    largest = _largest(bound, known, width, quotients, all_quotients)
    return total, largest, len(a) * outputs * prod(inverse.shape[3:])


class _Windows:
    """What a convolution reads of one channel at one place.

    Args:
        a: `[N, C, *sizes]`.
        kernel: sizes of the kernel.
        window: stride, padding and dilation.
        places: sizes of the convolution's output.
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
        """The windows `[n, taps]` of channels `[n]` at places `[n]`, numbered over samples and positions."""
        n, p = place // self._count, place % self._count
        start = n * self._sample + k * self._channel + self._origin[p]
        return self._flat[start[:, None] + self._tap]


def _grid(sizes: Sequence[int], steps: Sequence[int], like: Tensor) -> Tensor:
    """Where the points of a grid lie in memory."""
    found = torch.zeros(1, dtype=torch.int64, device=like.device)
    for size, step in zip(sizes, steps, strict=True):
        found = (found[:, None] + torch.arange(size, device=like.device) * step).flatten()
    return found


def _largest(
    bound: Tensor,
    known: Tensor,
    width: int,
    quotients: Callable[[Tensor, Tensor], Tensor],
    all_quotients: Callable[[], Tensor],
) -> Tensor:
    """The largest quotient of each unit `[N]`, in the type of the bounds; or what is known, where that is larger.

    Args:
        bound: `[N, places]`, not below any quotient of the unit at the place.
        known: `[N]`.
        width: elements that one unit at one place takes to work out.
        quotients: the largest quotients `[n]` of units `[n]` at places `[n]`.
        all_quotients: the same over all places, for each unit, without looking at bounds.
    """
    if torch.compiler.is_compiling():  # how many are looked at would depend on the data
        return all_quotients()
    units = torch.arange(len(bound), device=bound.device)

    def look(k: Tensor, place: Tensor, best: Tensor) -> Tensor:
        step = max(1, CHUNK // width)
        for i in range(0, len(k), step):
            some = k[i : i + step]
            best = best.scatter_reduce(0, some, quotients(some, place[i : i + step]), "amax")
        return best

    first = bound.topk(min(FIRST, bound.shape[1]), 1).indices
    best = known.reshape(-1).to(bound.dtype)
    best = look(units.repeat_interleave(first.shape[1]), first.flatten(), best)
    rounding = 8 * torch.finfo(bound.dtype).eps
    k, place = (bound > (best + rounding * best.abs())[:, None]).nonzero(as_tuple=True)
    if len(k) > MANY * bound.numel():
        return all_quotients()
    return look(k, place, best)


def _inverse(sums: Tensor) -> Tensor:
    """1 / sums; 0 where a sum is 0, or so near to it that this would overflow."""
    return (1 / sums).masked_fill_(sums.abs() < torch.finfo(sums.dtype).tiny, 0.0)


def _others(value: Tensor, axis: int | None) -> list[int]:
    """All axes but one."""
    return [i for i in range(value.dim()) if axis is None or i != axis % value.dim()]


KINDS: dict[str, type[Observer]] = {
    "on-fraction": OnFraction,
    "entropy": OnFraction,
    "mean": Mean,
    "max": Maximum,
    "contribution": Contribution,
    "covariance": Covariance,
}


class Observers(dict[str, Observer]):
    """The observers of a program by their paths; prints as a table."""

    def __str__(self) -> str:
        header = ["observer", "statistic", "units", "seen", "of units", "mean", "min", "max"]
        rows = [row for path, one in self.items() for row in _summary(path, one)]
        return tabulate(rows, header, floatfmt=".4g") if rows else "no observers"

    def to_json(self) -> dict[str, Any]:
        """Plain data: the table of each observer; numbers that JSON does not know are null."""
        return {path: json.loads(_spell(one.table())) for path, one in self.items()}

    def all_reduce(self) -> Self:
        """Merges what all processes have counted, observer by observer; returns itself."""
        for one in self.values():
            one.all_reduce()
        return self

    def freeze(self, frozen: bool = True) -> Self:
        """Stops counting, or goes on; returns itself."""
        for one in self.values():
            one.freeze(frozen)
        return self

    def reset(self) -> Self:
        """Forgets everything and counts again; returns itself."""
        for one in self.values():
            one.reset()
        return self


def _summary(path: str, one: Observer) -> list[list[Any]]:
    """A row for each statistic that has one number for each unit."""
    rows: list[list[Any]] = []
    for name, value in one.statistics().items():
        if value.dim() < 2:
            flat = value.double().reshape(-1)
            numbers = [float(x) for x in (flat.mean(), flat.min(), flat.max())] if len(flat) else []
            rows.append([path, one.stat, len(flat), int(one.seen), name, *numbers])
    return rows


def _spell(table: dict[str, Any]) -> str:
    return json.dumps(_finite(table), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def observer_nodes(program: Program) -> dict[str, list[fx.Node]]:
    """The places of each observer of a program, by the observer's path, in execution order."""
    found: dict[str, list[fx.Node]] = {}
    for node in program.graph.find_nodes(op="call_module"):
        if isinstance(leaf_of(program.module, node), Observer):
            found.setdefault(str(node.target), []).append(node)
    return found


def observers(program: Program) -> Observers:
    """The observers of a program by their paths, in execution order."""
    paths = observer_nodes(program)
    modules = {path: program.module.get_submodule(path) for path in paths}
    return Observers({p: m for p, m in modules.items() if isinstance(m, Observer)})


def count_apart(module: nn.Module) -> nn.Module:
    """Lets each process of DistributedDataParallel count for itself; call it before wrapping.

    DistributedDataParallel copies the buffers of the first process to the others before every forward,
    and what these had counted is lost. Returns the module. `broadcast_buffers=False` does the same for
    all buffers.
    """
    names = {
        f"{path}.{name}" if path else name
        for path, one in module.named_modules()
        if isinstance(one, Observer)
        for name, _ in one.named_buffers()
    }
    known = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    module._ddp_params_and_buffers_to_ignore = sorted(known | names)  # type: ignore[assignment]
    return module
