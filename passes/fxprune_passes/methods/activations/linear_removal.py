"""Removes activation functions that are linear, with the units and observers that become useless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fxprune.graph.program import Program
from fxprune.observe import observers
from fxprune.pipeline import Context, Keeps, Rewrite
from fxprune.training import Change, Shrinker
from fxprune_passes.methods.activations.entropy_layers import find_entropy_layers
from fxprune_passes.methods.method import When
from fxprune_passes.rewrite.dead_units_seen import DeadUnitsSeen
from fxprune_passes.rewrite.fuse_linear import FuseLinear
from fxprune_passes.rewrite.linearize import Linearize
from fxprune_passes.rewrite.move_padding import MovePadding


def remove_linear(
    shrinker: Shrinker, linearize: Linearize, ignore: Sequence[str], *, verify: bool
) -> list[Change]:
    """Removes the activations that were linear on the observed data, and the units that were never on.

    Args:
        shrinker: the shrinker of the network in training, with observers.
        linearize: the pass that defines which activations count as linear.
        ignore: see `find_entropy_layers`.
        verify: whether each removal is verified.

    Returns:
        The changes in order; some of them may have changed nothing.
    """
    before = _paths(shrinker, ignore)
    changes = [shrinker.run([linearize, DeadUnitsSeen()], verify=verify)]
    idle = (before - _paths(shrinker, ignore)) & observers(shrinker.program).keys()
    if idle:
        text = " | ".join(f"remove-observers{{where={path}}}" for path in sorted(idle))
        changes.append(shrinker.run(text, verify=verify))
    return changes


def join_linear(
    shrinker: Shrinker, when: When, *, move_padding: bool, fuse: bool, verify: bool
) -> list[Change]:
    """Prepares the layers between which nothing is left for fusing, or fuses them.

    Args:
        shrinker: the shrinker of the network in training.
        when: see `FuseLinear` and `MovePadding`.
        move_padding: whether padding moves in front of such layers, so that fusing is exact; no weight changes.
        fuse: whether they are fused; the states of their optimizers are reset.
        verify: whether fusing is verified.

    Returns:
        The changes in order; some of them may have changed nothing.
    """
    changes: list[Change] = []
    if move_padding:
        changes.append(shrinker.run([MovePadding(when=when)], verify=verify))
    if fuse:
        changes.append(shrinker.run([FuseLinear(when=when)], rewritten="reset", verify=verify))
    return changes


def _paths(shrinker: Shrinker, ignore: Sequence[str]) -> set[str]:
    return {layer.path for layer in find_entropy_layers(shrinker.program, ignore)}


@dataclass(frozen=True)
class ToIdentity(Rewrite):
    """Replaces an activation by the identity, whatever that changes, and removes its observer.

    Args:
        path: the path of its observer.
    """

    name: ClassVar[str] = "to-identity"
    keeps: ClassVar[Keeps] = "nothing"
    path: str = ""

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        for layer in find_entropy_layers(program):
            if layer.path == self.path:
                source = editor.node(layer.activation.source)
                editor.replace(editor.node(layer.activation.node), source.all_input_nodes[0])
        return editor.finish()
