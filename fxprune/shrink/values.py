"""Keeps each node's example value (`meta["val"]`) true to the smaller sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fxprune.algebra.label import Label
from fxprune.axes import Axes, BoolArray
from fxprune.plan import Plan
from fxprune.program import Program


def update_values(small: Program, program: Program, axes: Axes, plan: Plan) -> None:
    """Gives the nodes of `small`, a copy of `program`, values of the sizes that the plan leads to."""
    gone = np.zeros(axes.n_units, bool)
    gone[plan.removed] = True
    for ours, theirs in zip(small.nodes, program.nodes, strict=True):
        labels = axes.nodes.get(theirs)
        if labels is not None and "val" in ours.meta:
            ours.meta["val"] = _shrunk(ours.meta["val"], labels, axes, gone)
            ours.meta.pop("tensor_meta", None)


def _shrunk(value: Any, labels: Any, axes: Axes, gone: BoolArray) -> Any:
    if isinstance(labels, list):
        return [_shrunk(v, x, axes, gone) for v, x in zip(value, labels, strict=True)]
    if not isinstance(value, torch.Tensor) or labels is None:
        return value
    sizes = [_length(n, x, axes, gone) for n, x in zip(value.shape, labels, strict=True)]
    return value if sizes == list(value.shape) else value.new_empty(sizes)


def _length(size: Any, label: Label, axes: Axes, gone: BoolArray) -> Any:
    if not label.columns:
        return size
    kept = len(label) - int(axes.removed(label, gone).sum())
    return size if kept == len(label) else size * kept // len(label)
