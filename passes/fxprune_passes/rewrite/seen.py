"""What observers in a graph have seen of its activation functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxprune.graph.leaf import leaf_of
from fxprune.graph.program import Program
from fxprune.observe import OnFraction
from fxprune.pipeline import Context
from fxprune.structure.activations import Activation, find_activations
from fxprune_passes.rewrite.constant_units import Constant


@dataclass(frozen=True, eq=False)
class Seen:
    """An activation function and the observer of what it reads."""

    activation: Activation
    observer: OnFraction
    path: str

    @property
    def axis(self) -> int:
        """The axis of the units."""
        axis = self.activation.source.args[1]
        assert isinstance(axis, int)
        return axis

    @property
    def off(self) -> torch.Tensor:
        """Which units were never above 0."""
        return self.observer.on == 0

    @property
    def on(self) -> torch.Tensor:
        """Which units were always above 0."""
        return self.observer.on == self.observer.seen

    def constant(self) -> Constant:
        """The units that were never on, as zeros."""
        return Constant(self.axis, torch.where(self.off.cpu(), 0.0, float("nan")).double())


def activations_seen(program: Program, ctx: Context) -> list[Seen]:
    """The observed activation functions; a remark where there is none or where nothing was counted."""
    found: list[Seen] = []
    for one in find_activations(program):
        leaf = leaf_of(program.module, one.source)
        if not isinstance(leaf, OnFraction) or not leaf.on.dim():
            continue
        seen = Seen(one, leaf, str(one.source.target))
        if int(leaf.seen):
            found.append(seen)
        else:
            ctx.missed(
                one.node,
                f"{seen.path} says nothing",
                "it has seen no data",
                code="no-data",
                do="run the network on data first",
            )
    if not found:
        ctx.missed(
            program.name,
            "nothing was done",
            "no activation function has an observer of on-fractions with data",
            code="no-observers",
            do="insert-observers, then run the network on data",
        )
    return found
