"""Numbers for people, and the bars that show two of them."""

from __future__ import annotations

from fxprune.markup import Html, tag

_STEPS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def short(value: int) -> str:
    """Three digits and a prefix.

    >>> [short(n) for n in (0, 999, 1_234, 25_557_032)]
    ['0', '999', '1.23 k', '25.6 M']
    """
    for step, prefix in _STEPS:
        if value >= step:
            return (
                f"{value / step:.3g} {prefix}"
                if value < 1000 * step
                else f"{value // step:,} {prefix}"
            )
    return str(value)


def in_bytes(value: int) -> str:
    """A size in binary units.

    >>> in_bytes(46_827_520)
    '44.7 MiB'
    """
    for step, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= step:
            return f"{value / step:,.1f} {unit}"
    return f"{value} bytes"


def share(after: float, before: float) -> str:
    """What is left, in percent, on one line; "" of nothing."""
    return f"{100 * after / before:.0f}\u00a0%" if before else ""


def change(before: int, after: int) -> str:
    """Two numbers with an arrow, or one where they are equal."""
    return short(before) if before == after else f"{short(before)} → {short(after)}"


def bar(before: float, after: float, largest: float) -> Html:
    """A light bar for what was, a dark one in it for what is left.

    Args:
        before: what was.
        after: what is left.
        largest: what a bar of full width stands for.
    """
    wide, left = (100 * min(1.0, x / largest) if largest else 0.0 for x in (before, after))
    return tag("span", class_="bar", style=f"--b:{wide:.4g}%;--a:{left:.4g}%", aria_hidden="true")
