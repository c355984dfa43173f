"""The activation functions of a program with the statistics that observers have gathered of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxprune.graph.leaf import leaf_of
from fxprune.graph.program import Program
from fxprune.observe import OnFraction
from fxprune.pipeline import Context
from fxprune.structure.activations import Activation, find_activations
from fxprune_passes.rewrite.constants.constant import Constant


@dataclass(frozen=True, eq=False)
class Seen:
    """An activation function and the observer of its input."""

    activation: Activation
    observer: OnFraction
    path: str

    @property
    def axis(self) -> int:
        """The axis of the observed units."""
        axis = self.activation.source.args[1]
        assert isinstance(axis, int)
        return axis

    @property
    def off(self) -> torch.Tensor:
        """The units that were never above 0, as booleans."""
        return self.observer.on == 0

    @property
    def on(self) -> torch.Tensor:
        """The units that were always above 0, as booleans."""
        return self.observer.on == self.observer.seen

    def constant(self) -> Constant:
        """The units that were never on, as constant zeros."""
        return Constant(self.axis, torch.where(self.off.cpu(), 0.0, float("nan")).double())


def activations_seen(program: Program, ctx: Context) -> list[Seen]:
    """The observed activation functions; remarks on observers without data, and where there are no observers."""
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
                f"the observer {seen.path} is ignored",
                "it has seen no data",
                code="no-data",
                do="run the network on data first",
            )
    if not found:
        ctx.missed(
            program.name,
            "nothing was changed",
            "no activation function has an on-fraction observer that has seen data",
            code="no-observers",
            do="run insert-observers, then the network on data",
        )
    return found
