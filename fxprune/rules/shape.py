"""Rules for operators that move, join, cut or reinterpret axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxprune.algebra.units import Axes, Label, Units, concat, drop, frozen, merge
from fxprune.rules.table import rule


@rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten._reshape_copy", "aten.view_copy")
def reshape(u: Units, x: Axes, shape: Any, *_: Any) -> Axes:
    """Reshape: runs of sizes with equal products are merged, then split."""
    out = u.reshape(x, u.out)
    u.spell("size" if u.argument("size") else "shape", *out)
    return out


@rule("aten.view.dtype")
def view_dtype(u: Units, x: Axes, dtype: Any) -> Axes:
    """View as another type: the bits are reinterpreted, and every axis stays."""
    u.freeze(*x, why="its bits are read as another type")
    return frozen(u.out)


@rule("aten.flatten", "aten.ravel")
def flatten(u: Units, x: Axes, *_: Any, **__: Any) -> Axes:
    """Flatten: no argument spells a size."""
    return u.reshape(x, u.out)


@rule("aten.unflatten.int")
def unflatten(u: Units, x: Axes, dim: int, sizes: Sequence[Any]) -> Axes:
    """Unflatten: one axis becomes several."""
    out = u.reshape(x, u.out)
    dim %= len(x)
    u.spell("sizes", *out[dim : dim + len(sizes)])
    return out


@rule("aten.view_as", "aten.reshape_as")
def view_as(u: Units, x: Axes, other: Axes) -> Axes:
    """View with the shape of another tensor."""
    return tuple(u.unify(a, b) for a, b in zip(u.reshape(x, u.out), other, strict=True))


@rule("aten.permute")
def permute(u: Units, x: Axes, dims: Sequence[int]) -> Axes:
    """Permute: the axes are reordered."""
    return tuple(x[d] for d in dims)


@rule("aten.transpose.int", "aten.swapaxes", "aten.swapdims")
def transpose(u: Units, x: Axes, a: int, b: int) -> Axes:
    """Transpose: two axes are exchanged."""
    order = list(x)
    order[a], order[b] = order[b], order[a]
    return tuple(order)


@rule("aten.t", "aten.adjoint", "aten.mT", "aten.matrix_H")
def t(u: Units, x: Axes) -> Axes:
    """Transpose of the last two axes."""
    return x[:-2] + x[-2:][::-1]


@rule("aten.numpy_T")
def numpy_t(u: Units, x: Axes) -> Axes:
    """Transpose of all axes: their order is reversed."""
    return x[::-1]


@rule("aten.movedim", "aten.moveaxis")
def movedim(u: Units, x: Axes, source: Any, target: Any) -> Axes:
    """Moves some axes; the others keep their order."""
    pairs = (
        [(source, target)] if isinstance(source, int) else list(zip(source, target, strict=True))
    )
    places = {b % len(x): x[a % len(x)] for a, b in pairs}
    moved = {a % len(x) for a, _ in pairs}
    rest = iter(label for i, label in enumerate(x) if i not in moved)
    return tuple(places[i] if i in places else next(rest) for i in range(len(x)))


@rule("aten.unsqueeze")
def unsqueeze(u: Units, x: Axes, dim: int) -> Axes:
    """Inserts an axis of length 1."""
    dim %= len(x) + 1
    return *x[:dim], Label(1), *x[dim:]


@rule("aten.squeeze")
def squeeze(u: Units, x: Axes, dim: Any = None) -> Axes:
    """Drops axes of length 1.

    An axis that is named but longer is frozen, because it must not shrink to length 1 and be dropped
    then. Capture writes every squeeze with the axes that it drops.
    """
    named = range(len(x)) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = {d % len(x) for d in named} if x else set()
    u.freeze(*(x[d] for d in dims), why="the axis has length 1 and is dropped")
    return drop(x, {d for d in dims if len(x[d]) == 1})


@rule("aten.expand", "aten.broadcast_to")
def expand(u: Units, x: Axes, size: Any, *_: Any, **__: Any) -> Axes:
    """Expand: a repeated value may be repeated less often."""
    lead = len(u.out) - len(x)
    out = [_expanded(u, x[i - lead] if i >= lead else None, n, i) for i, n in enumerate(u.out)]
    u.spell("size", *out)
    return tuple(out)


def _expanded(u: Units, label: Label | None, length: int, position: int) -> Label:
    if label is not None and len(label) == length:
        return label
    if label is not None:
        u.freeze(label, why="the axis has length 1 and is broadcast")
    return Label(length) if u.symbolic(position) else u.fresh([length])[0]


@rule("aten.expand_as")
def expand_as(u: Units, x: Axes, other: Axes) -> Axes:
    """Expand to the shape of another tensor."""
    return u.broadcast(x, other)


@rule("aten.broadcast_tensors")
def broadcast_tensors(u: Units, tensors: Sequence[Axes]) -> list[Axes]:
    """Broadcasts all tensors to one shape."""
    axes = u.broadcast(*tensors)
    return [axes for _ in tensors]


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(u: Units, tensors: Sequence[Axes], dim: int = 0) -> Axes:
    """Concatenation: one axis is joined and the others are coupled.

    Empty one-dimensional operands are skipped, as torch does.
    """
    rank = max(len(x) for x in tensors)
    parts = [x for x in tensors if len(x) == rank]
    dim %= rank
    return tuple(
        concat(axes) if i == dim else u.unify(*axes)
        for i, axes in enumerate(zip(*parts, strict=True))
    )


@rule("aten.stack")
def stack(u: Units, tensors: Sequence[Axes], dim: int = 0) -> Axes:
    """Stack: adds an axis with one position for each tensor."""
    axes = tuple(u.unify(*group) for group in zip(*tensors, strict=True))
    dim %= len(axes) + 1
    return *axes[:dim], Label(len(tensors)), *axes[dim:]


@rule("aten.split_with_sizes", "aten.split.sizes", "aten.split_with_sizes_copy")
def split_with_sizes(u: Units, x: Axes, sizes: Sequence[Any], dim: int = 0) -> list[Axes]:
    """Split: an axis is cut into parts of given sizes."""
    dim %= len(x)
    ends = _ends([shape[dim] for shape in u.out])
    parts = [x[dim].take(slice(a, b)) for a, b in ends]
    u.spell("split_sizes" if u.argument("split_sizes") else "split_size", *parts)
    return [(*x[:dim], part, *x[dim + 1 :]) for part in parts]


@rule("aten.split.Tensor", "aten.chunk", "aten.tensor_split")
def split_evenly(u: Units, x: Axes, _: Any, dim: int = 0) -> list[Axes]:
    """Split into parts whose sizes the operator computes: the axis stays.

    Capture writes the sizes where they are known.
    """
    u.freeze(x[dim], why="it is split into parts whose sizes are computed at run time")
    return [frozen_at(x, dim, shape[dim]) for shape in u.out]


@rule("aten.unbind")
def unbind(u: Units, x: Axes, dim: int = 0) -> list[Axes]:
    """Unbind: one tensor for each position."""
    u.freeze(x[dim], why="each position becomes a tensor of its own")
    return [drop(x, [dim % len(x)]) for _ in u.out]


@rule("aten.select.int", "aten.select_copy.int")
def select(u: Units, x: Axes, dim: int, index: Any) -> Axes:
    """Select: one position is taken."""
    u.freeze(x[dim], why="one position is selected by its number")
    return drop(x, [dim % len(x)])


@rule("aten.slice.Tensor", "aten.slice_copy.Tensor")
def slice_(
    u: Units, x: Axes, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Axes:
    """Slice: a range of positions. With bounds known only at run time, the axis stays."""
    dim %= len(x)
    whole, length = x[dim], u.out[dim]
    if length == len(whole):
        return x
    numbers = all(n is None or isinstance(n, int) for n in (start, end))
    if not numbers or u.symbolic(dim):
        u.freeze(whole, why="positions are selected by their numbers")
        return frozen_at(x, dim, length)
    if step != 1:
        return _every(u, x, dim, slice(start, end, step))
    return _cut(u, x, dim, *slice(start, end).indices(len(whole))[:2])


def _every(u: Units, x: Axes, dim: int, taken: slice) -> Axes:
    """Returns the labels of every n-th position; only whole runs of n positions can be removed."""
    whole, step = x[dim], taken.step
    places = range(len(whole))[taken]
    from_first_run = taken.start is None or 0 <= taken.start < step
    to_end = taken.stop is None or taken.stop >= len(whole)
    if from_first_run and to_end and len(whole) % step == 0:
        runs, inside = u.split(whole, -1, step)
        u.freeze(inside, why="positions are selected by their numbers")
        return *x[:dim], runs, *x[dim + 1 :]
    u.freeze(whole, why="positions are selected by their numbers")
    return frozen_at(x, dim, len(places))


def _cut(u: Units, x: Axes, dim: int, first: int, last: int) -> Axes:
    whole = x[dim]
    if first > 0:
        u.bound("start", first, whole)
    if last < len(whole):
        u.bound("end", last, whole)
    return *x[:dim], whole.take(slice(first, last)), *x[dim + 1 :]


@rule("aten.narrow")
def narrow(u: Units, x: Axes, dim: int, start: Any, length: Any) -> Axes:
    """Narrow: a range of positions, given by start and length."""
    dim %= len(x)
    whole = x[dim]
    if not (isinstance(start, int) and isinstance(length, int)):
        u.freeze(whole, why="positions are selected by their numbers")
        return frozen_at(x, dim, u.out[dim])
    start %= len(whole)
    cut = whole.take(slice(start, start + length))
    u.bound("start", start, whole)
    u.spell("length", cut, single=True)
    return *x[:dim], cut, *x[dim + 1 :]


@rule("aten.slice_scatter")
def slice_scatter(
    u: Units, x: Axes, source: Axes, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Axes:
    """A range of positions is overwritten."""
    dim %= len(x)
    first, last, _ = slice(start, end).indices(len(x[dim]))
    every = slice(start, end, step)
    cut = _every(u, x, dim, every) if step != 1 else _cut(u, x, dim, first, last)
    for a, b in zip(cut, source, strict=True):
        u.unify(a, b)
    return x


@rule("aten.flip")
def flip(u: Units, x: Axes, dims: Sequence[int]) -> Axes:
    """Flip: axes are reversed."""
    turned = {d % len(x) for d in dims}
    return tuple(a.take(slice(None, None, -1)) if i in turned else a for i, a in enumerate(x))


@rule("aten.roll")
def roll(u: Units, x: Axes, shifts: Any, dims: Sequence[int] = ()) -> Axes:
    """Roll: positions are shifted along the axes, which stay."""
    u.freeze(*([x[d] for d in dims] if dims else x), why="positions are shifted along this axis")
    return x


@rule("aten.rot90")
def rot90(u: Units, x: Axes, times: int = 1, dims: Sequence[int] = (0, 1)) -> Axes:
    """A rotation by quarter turns in the plane of two axes, which stay."""
    turned = {d % len(x) for d in dims}
    u.freeze(*(x[d] for d in turned), why="positions are shifted along this axis")
    return tuple(Label(u.out[i]) if i in turned else a for i, a in enumerate(x))


@rule("aten.repeat")
def repeat(u: Units, x: Axes, repeats: Sequence[Any]) -> Axes:
    """Repeat: the tensor is tiled; an axis of length 1 may be repeated less often."""
    lead = len(u.out) - len(x)
    out = tuple(
        _repeated(u, x[i - lead] if i >= lead else Label(1), n, i) for i, n in enumerate(u.out)
    )
    single = (i < lead or len(x[i - lead]) == 1 for i in range(len(out)))
    u.spell("repeats", *(a if alone else None for a, alone in zip(out, single, strict=True)))
    return out


def _repeated(u: Units, label: Label, length: int, position: int) -> Label:
    if len(label) == length:
        return label
    if len(label) > 1:
        return label.tile(length // len(label))
    u.freeze(label, why="the axis has length 1 and is repeated")
    return Label(length) if u.symbolic(position) else u.fresh([length])[0]


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(
    u: Units, x: Axes, repeats: Any, dim: Any = None, *, output_size: Any = None
) -> Axes:
    """Repeats each position."""
    if dim is None:
        x, dim = (merge(*x),), 0
    dim %= len(x)
    whole, length = x[dim], u.out[dim]
    if len(whole) == 1:
        u.freeze(whole, why="the axis has length 1 and is repeated")
    out = whole.repeat(length // len(whole))
    if output_size is not None:
        u.spell("output_size", out, single=True)
    return *x[:dim], out, *x[dim + 1 :]


@rule("aten.pad", "aten.constant_pad_nd")
def pad(u: Units, x: Axes, pads: Sequence[Any], mode: Any = "constant", *_: Any) -> Axes:
    """Padding: with a constant value, fewer positions may be added.

    `pads` lists both ends of each axis, beginning with the last axis.
    """
    one_value = not isinstance(mode, str) or mode == "constant"
    out = list(x)
    spelled: list[Label | None] = []
    for axis, sides in zip(
        reversed(range(len(x))), zip(pads[::2], pads[1::2], strict=True), strict=False
    ):
        ends = _padding(u, x[axis], sides) if one_value else None
        spelled += ends or (None, None)
        if ends:
            out[axis] = concat([ends[0], x[axis], ends[1]])
        elif any(n != 0 for n in sides):
            u.freeze(x[axis], why="this axis is padded")
            out[axis] = Label(u.out[axis])
    u.spell("pad", *spelled)
    return tuple(out)


def _padding(u: Units, label: Label, sides: Sequence[Any]) -> Axes | None:
    """Returns the labels of what is added at both ends of an axis; None if the lengths are not known."""
    if not label.columns or not all(isinstance(n, int) and n >= 0 for n in sides) or not any(sides):
        return None
    return u.fresh(sides)


@rule(
    "aten.reflection_pad1d",
    "aten.reflection_pad2d",
    "aten.reflection_pad3d",
    "aten.replication_pad1d",
    "aten.replication_pad2d",
    "aten.replication_pad3d",
)
def pad_with_own(u: Units, x: Axes, pads: Sequence[Any]) -> Axes:
    """Padding with the tensor's own values: the last axes stay."""
    k = len(pads) // 2
    u.freeze(*x[-k:], why="this axis is padded")
    return x[:-k] + frozen(u.out[-k:])


@rule("aten.diagonal")
def diagonal(u: Units, x: Axes, offset: int = 0, a: int = 0, b: int = 1) -> Axes:
    """Diagonal: positions of two axes are paired by number and become the last axis."""
    pair = {a % len(x), b % len(x)}
    u.freeze(*(x[d] for d in pair), why="positions of two axes are paired by number")
    return *drop(x, pair), Label(u.out[-1])


@rule("aten.tril", "aten.triu")
def triangle(u: Units, x: Axes, *_: Any) -> Axes:
    """Triangular part: positions of two axes are compared by number."""
    u.freeze(*x[-2:], why="positions of two axes are compared by number")
    return x


@rule("aten.as_strided")
def as_strided(u: Units, x: Axes, *_: Any) -> Axes:
    """Strided view: memory is addressed directly."""
    u.freeze(*x, why="the operator addresses memory directly")
    return frozen(u.out)


@rule("aten.meshgrid")
def meshgrid(u: Units, tensors: Sequence[Axes], *, indexing: str = "ij") -> list[Axes]:
    """Meshgrid: each tensor varies along an axis of its own; with `"xy"` the first two are exchanged."""
    axes = [x[0] if x else Label(1) for x in tensors]
    if indexing == "xy":
        axes[:2] = axes[1::-1]
    return [tuple(axes) for _ in tensors]


@rule("aten.pixel_shuffle")
def pixel_shuffle(u: Units, x: Axes, factor: int) -> Axes:
    """Pixel shuffle: `[..., c*r*r, h, w] -> [..., c, h*r, w*r]`."""
    channel, block = u.split(x[-3], -1, factor * factor)
    u.freeze(block, *x[-2:], why="channels are rearranged into pixels")
    return *x[:-3], channel, *frozen(u.out[-2:])


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(u: Units, x: Axes, factor: int) -> Axes:
    """Pixel unshuffle: `[..., c, h*r, w*r] -> [..., c*r*r, h, w]`."""
    u.freeze(*x[-2:], why="pixels are rearranged into channels")
    return *x[:-3], x[-3].repeat(factor * factor), *frozen(u.out[-2:])


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(u: Units, x: Axes, groups: int) -> Axes:
    """Channel shuffle: `[b, g*c, ...] -> [b, c*g, ...]`."""
    group, part = u.split(x[1], groups, -1)
    u.spell("groups", group, single=True)
    return x[0], merge(part, group), *x[2:]


def frozen_at(x: Axes, dim: int, length: int) -> Axes:
    """Returns the labels with a frozen one of `length` at `dim`."""
    dim %= len(x)
    return *x[:dim], Label(length), *x[dim + 1 :]


def _ends(sizes: Sequence[int]) -> list[tuple[int, int]]:
    total, out = 0, []
    for size in sizes:
        out.append((total, total + size))
        total += size
    return out
