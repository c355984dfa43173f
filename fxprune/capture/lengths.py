"""How long the axes of an operator's result are, as formulas, where an operand has an axis of free length.

Most operators hand on the lengths of their operands. Those that compute others have a rule here; what a rule or a
match gives is compared with the lengths of both runs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import floor
from typing import Any

from fxprune.capture.formula import Formula, Space, value_of

Shape = Sequence[Any]
Shapes = Sequence[Shape]
# A rule gets the space, the shapes of the operands, and the arguments by name; None where it does not apply.
Rule = Callable[[Space, Shapes, dict[str, Any]], list[Shape] | None]


def result_shapes(
    space: Space, name: str, shapes: Shapes, given: dict[str, Any]
) -> list[Shape] | None:
    """The shapes of the results of an operator that computes lengths; None where it has no rule.

    Args:
        space: makes the formulas.
        name: of the operator, such as `conv2d`.
        shapes: of its tensors, in order.
        given: its arguments by name, with formulas for numbers.
    """
    rule = _RULES.get(name)
    return None if rule is None else rule(space, shapes, given)


def computes_lengths(name: str) -> bool:
    """Whether an operator may return an axis of another length that is as long as one of its operands in two runs."""
    return name in _RULES or name.startswith(_COMPUTE)


_COMPUTE = ("conv", "max_pool", "avg_pool", "upsample", "unfold", "im2col", "col2im", "fractional")


def find_length(
    space: Space, pair: tuple[int, int], shapes: Shapes, numbers: Sequence[Formula]
) -> Any:
    """The formula of a length that an operator hands on from operands or arguments; None if there is none.

    A length may also be the product of neighbouring lengths.
    """
    for shape in shapes:
        for n in shape:
            if isinstance(n, Formula) and n.pair == pair:
                return n
    for n in numbers:
        if n.pair == pair:
            return n
    for shape in shapes:
        if (found := _product(space, pair, shape)) is not None:
            return found
    return space.find(*pair) or space.find_multiple(*pair)


def _product(space: Space, pair: tuple[int, int], shape: Shape) -> Any:
    for first in range(len(shape)):
        one = two = 1
        for last in range(first, len(shape)):
            one, two = one * value_of(shape[last], 0), two * value_of(shape[last], 1)
            if (one, two) == pair:
                return product(space, shape[first : last + 1])
    return None


def product(space: Space, numbers: Shape) -> Any:
    """The product of numbers and formulas."""
    made: Any = 1
    for n in numbers:
        made = space.make(operator.mul, made, n) if made != 1 else n
    return made


def plus(space: Space, *numbers: Any) -> Any:
    """The sum of formulas and numbers."""
    constant = sum(n for n in numbers if not isinstance(n, Formula))
    made: Any = None
    for n in numbers:
        if isinstance(n, Formula):
            made = n if made is None else space.make(operator.add, made, n)
    if made is None:
        return constant
    if constant == 0:
        return made
    step = operator.add if constant > 0 else operator.sub
    return space.make(step, made, abs(constant))


def over(space: Space, a: Any, b: int) -> Any:
    """The quotient, rounded down."""
    return a if b == 1 else space.make(operator.floordiv, a, b)


def _each(x: Any, count: int, default: Any = None) -> list[Any]:
    if x is None or (isinstance(x, list | tuple) and not x):
        x = default
    values = list(x) if isinstance(x, list | tuple) else [x]
    return values * count if len(values) == 1 else values


def _window(
    space: Space, n: Any, size: Any, stride: Any, padding: Any, dilation: Any, *, up: bool = False
) -> Any:
    """How many windows there are along an axis; a last one that is cut off counts with `up` (`ceil_mode`)."""
    reach = 2 * padding - dilation * (size - 1) - 1
    count = plus(space, over(space, plus(space, n, reach + (stride - 1 if up else 0)), stride), 1)
    if up and not space.compare(
        operator.lt, _times(space, plus(space, count, -1), stride), plus(space, n, padding)
    ):
        return plus(space, count, -1)
    return count


def _times(space: Space, n: Any, factor: Any) -> Any:
    return n if factor == 1 else space.make(operator.mul, n, factor)


def _convolution(space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape] | None:
    x, weight = shapes[:2]
    count = len(weight) - 2
    if len(x) != len(weight) or isinstance(given["padding"], str):
        if given["padding"] == "valid":
            given = {**given, "padding": 0}
        elif given["padding"] == "same":
            return [[x[0], weight[0], *x[-count:]]]
        if len(x) != len(weight):
            return None
    sides = (_each(given[k], count) for k in ("stride", "padding", "dilation"))
    transposed = bool(given.get("transposed")) or (
        "output_padding" in given and "transposed" not in given
    )
    if not transposed:
        out = [
            _window(space, n, k, s, p, d)
            for n, k, s, p, d in zip(x[2:], weight[2:], *sides, strict=True)
        ]
        return [[x[0], weight[0], *out]]
    more = _each(given["output_padding"], count)
    out = [
        plus(space, _times(space, plus(space, n, -1), s), d * (k - 1) - 2 * p + e + 1)
        for n, k, s, p, d, e in zip(x[2:], weight[2:], *sides, more, strict=True)
    ]
    return [[x[0], weight[1] * given["groups"], *out]]


def _pool(count: int, results: int) -> Rule:
    def rule(space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape]:
        x = shapes[0]
        sizes = _each(given["kernel_size"], count)
        steps = _each(given["stride"], count, sizes)
        pads, dilations = _each(given["padding"], count), _each(given.get("dilation", 1), count)
        out = [
            _window(space, *one, up=given["ceil_mode"])
            for one in zip(x[-count:], sizes, steps, pads, dilations, strict=True)
        ]
        return [[*x[:-count], *out]] * results

    return rule


def _upsample(space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape] | None:
    x, sizes = shapes[0], given.get("output_size")
    if sizes is not None:
        return [[*x[:2], *sizes]]
    scales = given.get("scale_factors")
    if scales is None:
        return None
    out: list[Any] = []
    for n, scale in zip(x[2:], scales, strict=True):
        whole = isinstance(scale, float) and scale == floor(scale)
        if not isinstance(n, Formula) and not isinstance(scale, Formula):
            out.append(floor(n * scale))
        elif whole:
            out.append(_times(space, n, int(scale)))
        elif isinstance(scale, float) and 1 / scale == floor(1 / scale):
            out.append(over(space, n, int(1 / scale)))
        else:
            return None
    return [[*x[:2], *out]]


def _slice(space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape]:
    x, dim, step = list(shapes[0]), given["dim"], given["step"]
    whole = x[dim]
    first, last = (
        _bound(space, given[key], whole, default) for key, default in (("start", 0), ("end", whole))
    )
    length = last if first == 0 else plus(space, last, _minus(space, first))
    if step != 1:
        length = over(space, plus(space, length, step - 1), step)
    x[dim] = length
    return [x]


def _minus(space: Space, x: Any) -> Any:
    return space.make(operator.neg, x) if isinstance(x, Formula) else -x


def _bound(space: Space, place: Any, whole: Any, default: Any) -> Any:
    """A bound of a slice, counted from the first position and within the axis."""
    if place is None or (isinstance(place, int) and place >= (1 << 62)):
        return default
    if not isinstance(place, Formula) and not isinstance(whole, Formula):
        return min(max(place + whole if place < 0 else place, 0), whole)
    if space.compare(operator.lt, place, 0):
        place = plus(space, place, whole)
        if space.compare(operator.lt, place, 0):
            return 0
    return place if space.compare(operator.le, place, whole) else whole


def _narrow(_space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape]:
    x = list(shapes[0])
    x[given["dim"]] = given["length"]
    return [x]


def _cat(space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape] | None:
    rank = max(len(x) for x in shapes)
    parts = [x for x in shapes if len(x) == rank]
    dim, out = given["dim"] % rank, list(parts[0])
    out[dim] = plus(space, *(x[dim] for x in parts))
    return [out]


def _pad(space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape]:
    x = list(shapes[0])
    pads = given["pad"] if "pad" in given else given["padding"]
    for i in range(len(pads) // 2):
        x[-1 - i] = plus(space, x[-1 - i], pads[2 * i], pads[2 * i + 1])
    return [x]


def _shuffle(space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape]:
    *lead, c, h, w = shapes[0]
    k = given["upscale_factor"]
    return [[*lead, over(space, c, k * k), _times(space, h, k), _times(space, w, k)]]


def _unshuffle(space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape]:
    *lead, c, h, w = shapes[0]
    k = given["downscale_factor"]
    return [[*lead, _times(space, c, k * k), over(space, h, k), over(space, w, k)]]


def _repeat(space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape]:
    times = given["repeats"] if "repeats" in given else given["dims"]
    rank = max(len(times), len(shapes[0]))
    x = [*[1] * (rank - len(shapes[0])), *shapes[0]]
    times = [*[1] * (rank - len(times)), *times]
    return [[product(space, [n, k]) for n, k in zip(x, times, strict=True)]]


def _unfold(space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape]:
    x = list(shapes[0])
    dim = given["dimension"]
    x[dim] = _window(space, x[dim], given["size"], given["step"], 0, 1)
    return [[*x, given["size"]]]


def _im2col(space: Space, shapes: Shapes, given: dict[str, Any]) -> list[Shape] | None:
    x = shapes[0]
    if len(x) != 4:
        return None
    names = ("kernel_size", "stride", "padding", "dilation")
    size, stride, padding, dilation = (_each(given[k], 2) for k in names)
    windows = [
        _window(space, *one) for one in zip(x[2:], size, stride, padding, dilation, strict=True)
    ]
    return [[x[0], _times(space, x[1], size[0] * size[1]), product(space, windows)]]


_PADS = (
    *("pad", "constant_pad_nd"),
    *(f"{kind}_pad{d}d" for kind in ("reflection", "replication") for d in (1, 2, 3)),
)
_CONVOLUTIONS = (
    *("convolution", "_convolution"),
    *(f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (1, 2, 3)),
)
_UPSAMPLES = (
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *(f"upsample_nearest{d}d" for d in (1, 2, 3)),
    *(f"_upsample_nearest_exact{d}d" for d in (1, 2, 3)),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
)
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_UPSAMPLES, _upsample),
    **dict.fromkeys(_PADS, _pad),
    **{f"{kind}_pool{d}d": _pool(d, 1) for kind in ("max", "avg") for d in (1, 2, 3)},
    **{f"max_pool{d}d_with_indices": _pool(d, 2) for d in (2, 3)},
    **dict.fromkeys(("slice", "slice_copy"), _slice),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "narrow": _narrow,
    "pixel_shuffle": _shuffle,
    "pixel_unshuffle": _unshuffle,
    "unfold": _unfold,
    "im2col": _im2col,
}
