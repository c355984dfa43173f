"""Costs as sums of products of axis lengths, so that a removal can be priced without rewriting the program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from fxprune.algebra.label import IntArray, Label
from fxprune.analysis.axes import Axes, BoolArray
from fxprune.graph.program import Program

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Term:
    """One product: `factor / divisor` times the kept lengths of `labels`.

    Attributes:
        name: the node or parameter that the cost belongs to.
        factor: the part that cannot change: batch, image and kernel sizes, and frozen axes.
        labels: the axes that can lose positions, over final units.
        divisor: compensates for labels into which a placeholder for the batch size was merged; it
            divides the product exactly.
    """

    name: str
    factor: int
    labels: tuple[Label, ...]
    divisor: int = 1

    @classmethod
    def of(cls, name: str, factor: int, extents: Iterable[tuple[int, Label]]) -> Term:
        """Builds the term of axes given by their real length and their (final) label."""
        labels: list[Label] = []
        divisor = 1
        for size, label in extents:
            if not label.columns:
                factor *= size
                continue
            labels.append(label)
            if len(label) != size:
                factor, divisor = factor * size, divisor * len(label)
        return cls(name, factor, tuple(labels), divisor)


class Cost:
    """The sum of terms, prepared to price any removal in well under a millisecond per thousand axes.

    Args:
        terms: the terms to add up.
        n_units: the number of units, 0 to n_units - 1; unit 0 is never removed.
    """

    def __init__(self, terms: Sequence[Term], n_units: int) -> None:
        self.terms = tuple(terms)
        self.n_units = n_units
        self._labels = {id(x): x for term in terms for x in term.labels}
        self._place = {key: i for i, key in enumerate(self._labels)}
        self._rows = [[self._place[id(x)] for x in term.labels] for term in terms]
        self._lengths = np.array([len(x) for x in self._labels.values()], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths

    def total(self, gone: BoolArray) -> int:
        """Returns the exact cost once the units in the mask `gone`, `[n_units]`, are removed."""
        return sum(self._priced(gone))

    def by_name(self, gone: BoolArray) -> dict[str, int]:
        """Returns the same cost by node or parameter."""
        found: dict[str, int] = {}
        for term, value in zip(self.terms, self._priced(gone), strict=True):
            found[term.name] = found.get(term.name, 0) + value
        return found

    def gradient(self, gone: BoolArray) -> FloatArray:
        """Returns the first-order saving of removing each unit in addition to `gone`, `[n_units]`; 0 for unit 0."""
        kept = self._kept(gone)
        weights = np.zeros(len(kept))
        for term, row in zip(self.terms, self._rows, strict=True):
            for i, place in enumerate(row):
                others = prod(kept[j] for j in row[:i] + row[i + 1 :])
                weights[place] += term.factor * others / term.divisor
        per_position = np.repeat(weights, self._lengths)
        per_position[self._lost(gone)] = 0
        saved = np.zeros(self.n_units)
        for at, column in self._columns:
            saved += np.bincount(column, per_position[at], minlength=self.n_units)
        saved[0] = 0
        return saved

    def _priced(self, gone: BoolArray) -> Iterable[int]:
        kept = self._kept(gone)
        return (
            t.factor * prod(kept[i] for i in row) // t.divisor
            for t, row in zip(self.terms, self._rows, strict=True)
        )

    def _kept(self, gone: BoolArray) -> list[int]:
        """Returns the kept length of each distinct label, as Python integers, which do not overflow."""
        if not len(self._lengths):
            return []
        lost = np.add.reduceat(self._lost(gone).astype(np.int64), self._starts)
        return [int(n) for n in self._lengths - lost]

    def _lost(self, gone: BoolArray) -> BoolArray:
        lost = np.zeros(int(self._lengths.sum()), bool)
        for at, column in self._columns:
            lost[at] |= gone[column]
        return lost

    @cached_property
    def _columns(self) -> list[tuple[slice | IntArray, IntArray]]:
        """Returns the k-th columns of all labels concatenated, with the positions at which they start."""
        labels = list(self._labels.values())
        out: list[tuple[slice | IntArray, IntArray]] = []
        for k in range(max((len(x.columns) for x in labels), default=0)):
            having = [
                (s, x) for s, x in zip(self._starts, labels, strict=True) if len(x.columns) > k
            ]
            at = np.concatenate([np.arange(s, s + len(x)) for s, x in having])
            out.append((at, np.concatenate([x.columns[k] for _, x in having])))
        return out


def param_terms(program: Program, axes: Axes) -> list[Term]:
    """Returns the elements of each parameter as cost terms; shared parameters count once, buffers do not count."""
    return [
        tensor_term(name, tensor, axes, 1) for name, tensor in program.module.named_parameters()
    ]


def tensor_term(name: str, tensor: torch.Tensor, axes: Axes, each: int) -> Term:
    """Returns the cost term of a tensor at `each` per element; it is fixed if the graph does not use the tensor."""
    labels = axes.params.get(name)
    if labels is None:
        return Term(name, each * tensor.numel(), ())
    return Term.of(name, each, zip(tensor.shape, labels, strict=True))
