"""Rules for operators that multiply and sum: matrix products, linear layers and convolutions."""

from __future__ import annotations

from typing import Any

from fxprune.algebra.units import Axes, Label, Units, frozen, merge
from fxprune.rules.table import present, rule


@rule("aten.mm", "aten.bmm", "aten.matmul")
def matmul(u: Units, a: Axes, b: Axes, *_: Any) -> Axes:
    """Matrix product `[..., n, k] @ [..., k, m]`; a vector acts as a single row or column."""
    u.contract(a[-1], b[max(len(b) - 2, 0)])
    batch = u.broadcast(a[:-2], b[:-2])
    return (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


@rule("aten.mv", "aten.dot", "aten.vdot", "aten.inner")
def inner(u: Units, a: Axes, b: Axes) -> Axes:
    """Inner product: the last axes of both operands are contracted."""
    u.contract(a[-1], b[-1])
    return a[:-1] + b[:-1]


@rule("aten._cdist_forward")
def cdist(u: Units, a: Axes, b: Axes, *_: Any) -> Axes:
    """Distances of all rows `[..., n, k]` to all rows `[..., m, k]`; a removed feature counts as equal in both."""
    u.contract(a[-1], b[-1])
    return *u.broadcast(a[:-2], b[:-2]), a[-2], b[-2]


@rule("aten.linalg_cross")
def cross(u: Units, a: Axes, b: Axes, *, dim: int = -1) -> Axes:
    """Cross product: the three positions of `dim` are directions and stay."""
    u.freeze(a[dim], b[dim], why="the positions of this axis are directions in space")
    return u.broadcast(a, b)


@rule("aten.outer", "aten.ger")
def outer(u: Units, a: Axes, b: Axes) -> Axes:
    """Outer product `[n] x [m] -> [n, m]`."""
    return a + b


@rule("aten.addmm", "aten.addmv", "aten.baddbmm")
def addmm(u: Units, bias: Axes, a: Axes, b: Axes, *_: Any, **__: Any) -> Axes:
    """A matrix product plus a bias that is broadcast."""
    return u.broadcast(matmul(u, a, b), bias)


@rule("aten.addbmm")
def addbmm(u: Units, bias: Axes, a: Axes, b: Axes, **_: Any) -> Axes:
    """A matrix product plus a bias, summed over the batch axis too."""
    u.contract(a[0], b[0])
    return u.broadcast(matmul(u, a[1:], b[1:]), bias)


@rule("aten.linear")
def linear(u: Units, x: Axes, w: Axes, bias: Axes | None = None) -> Axes:
    """Linear layer: the weight is `[out, in]`."""
    u.contract(x[-1], w[-1])
    if bias is not None and len(w) > 1:
        u.unify(w[0], *bias)
    return x[:-1] + w[:-1]


@rule("aten.bilinear")
def bilinear(u: Units, a: Axes, b: Axes, w: Axes, bias: Axes | None = None) -> Axes:
    """Bilinear layer: the weight is `[out, in of a, in of b]`."""
    u.contract(a[-1], w[1])
    u.contract(b[-1], w[2])
    u.unify(w[0], *(bias or ()))
    return (*u.broadcast(a[:-1], b[:-1]), w[0])


@rule("aten.convolution", "aten._convolution")
def convolution(
    u: Units,
    x: Axes,
    w: Axes,
    bias: Axes | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: Any,
) -> Axes:
    """Convolution: the weight is `[out, in/groups, *kernel]`, if transposed `[in, out/groups, *kernel]`.

    The input may lack its batch axis.
    """
    channel = len(x) - len(w) + 1
    x_in, space = x[channel], x[channel + 1 :]
    u.freeze(*space, *w[2:], why="a window slides over this axis")
    u.silence(x_in, w[0] if transposed else w[1])
    out = _transposed_channels(u, x_in, w, groups) if transposed else _channels(u, x_in, w, groups)
    out = u.unify(out, *(bias or ()))
    return (*x[:channel], out, *frozen(u.out[channel + 1 :]))


def _channels(u: Units, x: Label, w: Axes, groups: int) -> Label:
    """Returns the output channels; only whole groups, or the same channels of every group, can be removed."""
    (gx, cx), (gw, cw) = u.split(x, groups, -1), u.split(w[0], groups, -1)
    u.unify(cx, w[1])
    group = u.unify(gx, gw)
    u.spell("groups", group, single=True)
    return merge(group, cw)


def _transposed_channels(u: Units, x: Label, w: Axes, groups: int) -> Label:
    """Does the same for a transposed convolution, whose weight is `[in, out/groups, *kernel]`."""
    u.unify(x, w[0])
    group, _ = u.split(w[0], groups, -1)
    u.spell("groups", group, single=True)
    if groups > 1 and len(w[1]) == 1:
        u.freeze(w[1], why="it is the only channel of its group")
    return merge(group, w[1])


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def conv(
    u: Units,
    x: Axes,
    w: Axes,
    bias: Axes | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Axes:
    """Convolution with the argument order of the training IR."""
    return convolution(u, x, w, bias, stride, padding, dilation, False, None, groups)


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def conv_transpose(
    u: Units,
    x: Axes,
    w: Axes,
    bias: Axes | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Axes:
    """Transposed convolution with the argument order of the training IR."""
    return convolution(u, x, w, bias, stride, padding, dilation, True, output_padding, groups)


@rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped_mm(u: Units, a: Axes, b: Axes, offs: Any = None, bias: Any = None, *_: Any) -> Axes:
    """Grouped product `[n, k] @ [e, k, m]`, in which `offs` assigns the rows of `a` to the e experts."""
    u.freeze(a[-2], *b[:-2], *(offs or ()), why="rows are assigned to experts at run time")
    u.contract(a[-1], b[-2])
    out = u.unify(b[-1], *(x[-1] for x in present(bias)))
    return (*frozen(u.out[:-1]), out)
