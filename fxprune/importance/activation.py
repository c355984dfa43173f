"""Criteria computed from activations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.algebra.label import Label
from fxprune.graph.evaluate import Evaluator
from fxprune.importance.table import Evidence, FloatArray, unit_criterion


@unit_criterion("activation", needs="inputs")
def activation(evidence: Evidence) -> FloatArray:
    """Mean absolute activation of a unit where it enters an operator that sums over it, over all batches.

    This is the mean-activation criterion of Molchanov et al. (arXiv 1611.06440, section 2.2), taken of
    absolute values. A unit that enters several operators gets their average. Without data
    the program's example inputs are used.
    """
    totals = np.zeros(evidence.axes.n_units)
    counts = np.zeros(evidence.axes.n_units)
    watch = _Watch(evidence, totals, counts)
    for args, kwargs in evidence.inputs():
        watch.evaluate(args, kwargs)
    return totals / np.maximum(counts, 1)


class _Watch(Evaluator):
    """Adds up the magnitudes of the inputs of every contraction."""

    def __init__(self, evidence: Evidence, totals: FloatArray, counts: FloatArray) -> None:
        super().__init__(evidence.program, torch.float32)
        self._axes, self._totals, self._counts = evidence.axes, totals, counts

    def run_node(self, n: fx.Node) -> Any:
        marks = self._axes.marks.get(n)
        if marks is not None:
            wanted = {id(x) for x in marks.silenced}
            for value, axis, label in self._activations(n, wanted):
                self._add(
                    value.abs().double().mean([d for d in range(value.dim()) if d != axis]), label
                )
        return super().run_node(n)

    def _activations(
        self, node: fx.Node, wanted: set[int]
    ) -> Iterator[tuple[torch.Tensor, int, Label]]:
        for source in node.all_input_nodes:
            labels, value = self._axes.nodes.get(source), self.env.get(source)
            if (
                source.op != "get_attr"
                and isinstance(value, torch.Tensor)
                and isinstance(labels, tuple)
            ):
                for axis, label in enumerate(labels):
                    if id(label) in wanted and len(label) == value.shape[axis]:
                        yield value, axis, label

    def _add(self, magnitude: torch.Tensor, label: Label) -> None:
        for column in self._axes.final(label).columns:
            np.add.at(self._totals, column, magnitude.numpy())
            np.add.at(self._counts, column, 1)
