"""Takes out activations that are linear, and what has become of no use with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fxprune.graph.program import Program
from fxprune.observe import observers
from fxprune.pipeline import Context, Keeps, Rewrite
from fxprune.training import Change, Shrinker
from fxprune_passes.methods.entropy_layers import find_entropy_layers
from fxprune_passes.rewrite.dead_units import DeadUnitsSeen
from fxprune_passes.rewrite.linearize import Linearize


def remove_linear(
    shrinker: Shrinker, linearize: Linearize, ignore: Sequence[str], *, fuse: bool, verify: bool
) -> list[Change]:
    """Takes out what was linear on the data that observers saw, and units that were never on.

    Args:
        shrinker: of the network that trains, with observers.
        linearize: what counts as linear.
        ignore: see `find_entropy_layers`.
        fuse: fuse the layers around an identity too; their states in the optimizer start anew.
        verify: hold each removal to what it declares to keep.

    Returns:
        What was done, in order; some of it may have changed nothing.
    """
    before = _paths(shrinker, ignore)
    changes = [shrinker.run([linearize, DeadUnitsSeen()], verify=verify)]
    idle = (before - _paths(shrinker, ignore)) & observers(shrinker.program).keys()
    if idle:
        text = " | ".join(f"remove-observers{{where={path}}}" for path in sorted(idle))
        changes.append(shrinker.run(text, verify=verify))
    if fuse:
        changes.append(shrinker.run("fuse-linear", rewritten="reset", verify=verify))
    return changes


def _paths(shrinker: Shrinker, ignore: Sequence[str]) -> set[str]:
    return {layer.path for layer in find_entropy_layers(shrinker.program, ignore)}


@dataclass(frozen=True)
class ToIdentity(Rewrite):
    """Puts the identity in place of an activation, whatever that changes; its observer goes too.

    Args:
        path: of its observer.
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
