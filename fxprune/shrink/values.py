"""Updates each node's example value (`meta["val"]`) to the smaller sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.algebra.label import Label
from fxprune.analysis.axes import Axes, BoolArray
from fxprune.graph.program import Program
from fxprune.plan import Plan
from fxprune.torch_private import resized, size_key


def update_values(graph: fx.Graph, program: Program, axes: Axes, plan: Plan) -> None:
    """Gives the nodes of `graph`, a copy of the program's graph, example values of the sizes after the plan."""
    gone = np.zeros(axes.n_units, bool)
    gone[plan.removed] = True
    shrinker = _Shrinker(axes, gone)
    for ours, theirs in zip(graph.nodes, program.nodes, strict=True):
        labels = axes.nodes.get(theirs)
        if labels is not None and "val" in ours.meta:
            ours.meta["val"] = shrinker.value(ours.meta["val"], labels)
            ours.meta.pop("tensor_meta", None)


class _Shrinker:
    """Creates example values of smaller sizes; nodes with the same size and type share one."""

    def __init__(self, axes: Axes, gone: BoolArray) -> None:
        self._axes, self._gone = axes, gone
        self._kept: dict[int, int] = {}
        self._made: dict[Any, torch.Tensor] = {}

    def value(self, value: Any, labels: Any) -> Any:
        if isinstance(labels, list):
            return [self.value(v, x) for v, x in zip(value, labels, strict=True)]
        if not isinstance(value, torch.Tensor) or labels is None:
            return value
        shape = value.shape  # once: a length known at run time is another object each time
        lengths = [self._length(n, x) for n, x in zip(shape, labels, strict=True)]
        if all(new is old for new, old in zip(lengths, shape, strict=True)):
            return value
        key = (tuple(map(size_key, lengths)), value.dtype, value.device)
        if key not in self._made:
            self._made[key] = resized(value, lengths)
        return self._made[key]

    def _length(self, size: Any, label: Label) -> Any:
        if not label.columns:
            return size
        if id(label) not in self._kept:
            self._kept[id(label)] = len(label) - int(self._axes.removed(label, self._gone).sum())
        kept = self._kept[id(label)]
        return size if kept == len(label) else size * kept // len(label)
