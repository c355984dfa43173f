"""Fewer places, such as pixels or tokens, at which a region can be compared at a smaller cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from math import gcd, prod

from torch import fx

from fxprune.verify.local.seen import Shape

_PLACES = 5  # along an axis: a kernel has an inside, and two edges
_WORTH = 4  # times as many numbers there have to be for it to be worth a try

Shapes = Mapping[fx.Node, Shape | None]
Inner = Callable[[Shape], range]
"""From sizes to the axes that are places."""


def fewer_places(shapes: Shapes) -> Iterator[Shapes]:
    """Smaller sizes for the values that enter a region, which it may or may not accept.

    First the axes behind the channels of images are shortened, then the axes between rows and features of
    sequences. Lengths keep their ratios, and differ from axis to axis.

    Args:
        shapes: the sizes of these values; None for what is no tensor.
    """
    for inner in (_behind_channels, _before_features):
        lengths = _lengths([s for s in shapes.values() if s], inner)
        found = {n: s and _shortened(s, inner, lengths) for n, s in shapes.items()}
        if _WORTH * sum(map(_numbers, found.values())) <= sum(map(_numbers, shapes.values())):
            yield found


def _lengths(known: list[Shape], inner: Inner) -> dict[int, Fraction]:
    """The share of each axis that is left."""
    found: dict[int, Fraction] = {}
    for axis in {a for shape in known for a in inner(shape)}:
        lengths = [s[axis] for s in known if axis in inner(s)]
        unit, least = gcd(*lengths), min(lengths)
        if unit:
            steps = -(-(_PLACES + axis % 2) // (least // unit))
            found[axis] = min(Fraction(steps, unit), Fraction(1))
    return found


def _shortened(shape: Shape, inner: Inner, shares: Mapping[int, Fraction]) -> Shape:
    short = {a: int(shape[a] * shares[a]) for a in inner(shape) if a in shares}
    return tuple(short.get(a, n) for a, n in enumerate(shape))


def _numbers(shape: Shape | None) -> int:
    return prod(shape) if shape else 0


def _behind_channels(shape: Shape) -> range:
    return range(2, len(shape)) if len(shape) > 3 else range(0)


def _before_features(shape: Shape) -> range:
    return range(1, len(shape) - 1)
