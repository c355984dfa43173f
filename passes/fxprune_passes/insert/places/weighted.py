"""Weighted operators, and the name of the weight that a node reads."""

from __future__ import annotations

from torch import fx

from fxprune.structure.paths import operator

WEIGHTED = frozenset(
    (
        "linear",
        "addmm",
        "mm",
        "convolution",
        *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3)),
    )
)


def weight_of(node: fx.Node) -> str:
    """The name of the stored weight of a convolution or linear layer; "" for any other node."""
    if operator(node) not in WEIGHTED:
        return ""
    second = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
    return str(second[0].target) if second else ""
