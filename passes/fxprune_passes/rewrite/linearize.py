"""Replaces activation functions that were linear on the observed data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from fxprune.algebra.label import Label
from fxprune.analysis.axes import Axes
from fxprune.graph.editor import Editor
from fxprune.graph.program import Program
from fxprune.observe import observer_nodes
from fxprune.pipeline import Context, Keeps, Rewrite
from fxprune_passes.rewrite.branches.zero import StuckError, follow_zero
from fxprune_passes.rewrite.constants.activations_seen import Seen, activations_seen
from fxprune_passes.rewrite.constants.constant_units import constant_units
from fxprune_passes.rewrite.constants.dead import find_dead


@dataclass(frozen=True)
class Linearize(Rewrite):
    """Removes activation functions that their observers have seen act linearly.

    - If every unit was always on, the activation becomes the identity (ReLU and others that leave positive
      numbers unchanged).
    - If every unit was always off, it becomes 0, which is followed up to the next sum.
    - If each unit was either always on or always off, the units that were off are removed, and the activation
      becomes the identity.

    This holds on the observed data; on other data the function changes.

    With `eps` above 0, any activation whose entropy is lower than `eps` becomes the identity as well, in the
    order of increasing entropy, as long as the total rise of the loss does not exceed `rise` (NEPENTHE and
    EASIER, after arXiv 2308.06619). The entropy of a layer is the mean over the units that are neither always
    on nor always off.

    Args:
        eps: the entropy in bits below which an activation may be removed; 0: only where nothing changes.
        rise: by how much the loss may rise.
        loss: returns the loss of a GraphModule on your data; required where `eps` is above 0.
    """

    name: ClassVar[str] = "linearize"
    keeps: ClassVar[Keeps] = "nothing"
    eps: float = 0.0
    rise: float = 0.0
    loss: Callable[[Any], Any] | None = field(default=None, compare=False)

    def rewrite(self, program: Program, ctx: Context) -> Program:
        program = self._drop_mixed(program, ctx)
        found = activations_seen(program, ctx)
        left: list[Seen] = []
        editor = ctx.edit(program)
        for seen in found:
            node = seen.activation.node
            if bool(seen.on.all()) and seen.activation.identity_above:
                if ctx.allow(
                    node, "replaced by the identity", code="identity", why=_why(seen, "on")
                ):
                    editor.replace(editor.node(node), editor.node(seen.activation.source))
            elif bool(seen.off.all()) and seen.activation.zero_below:
                _silence(editor, seen, ctx)
            else:
                left.append(seen)
        return self._nearly(editor.finish(), left, ctx)

    def _drop_mixed(self, program: Program, ctx: Context) -> Program:
        """Removes the units that were always off from activations whose other units were always on."""
        mixed = [s for s in activations_seen(program, ctx.fork()) if _is_split(s)]
        if not mixed:
            return program
        seeds = {s.activation.node: s.constant() for s in mixed}
        known = constant_units(program, seeds)
        dead = find_dead(program, ctx, known, carry=False).units
        chosen: set[int] = set()
        for seen in mixed:
            units = _units_off(ctx.axes(program), seen)
            node = seen.activation.node
            if not units or not units <= dead:
                why = "the units that were always off are read where they are not 0, or cannot be removed"
                ctx.missed(node, "the activation stays", why, code="mixed")
            elif ctx.allow(
                node, f"removed {len(units)} units", code="units", why="they were never on"
            ):
                chosen |= units
        return ctx.remove(program, chosen) if chosen else program

    def _nearly(self, program: Program, left: list[Seen], ctx: Context) -> Program:
        """Removes activations with low entropy, as long as the loss allows it."""
        low: list[tuple[float, Seen]] = []
        for seen in left:
            entropy = seen.observer.layer_entropy()
            if entropy < self.eps:
                low.append((entropy, seen))
            else:
                why = f"its entropy is {entropy:.3g} bits, eps is {self.eps:g}"
                ctx.missed(seen.activation.node, "the activation stays", why, code="nonlinear")
        if low and self.loss is None:
            why = "removing activations that are not linear changes the loss, and no loss was given to measure it"
            do = "pass a loss: Linearize(eps=..., loss=lambda module: ...)"
            ctx.missed(program.name, f"{len(low)} activations stay", why, code="no-loss", do=do)
            return program
        first = last = self._measure(program, ctx) if low else 0.0
        for entropy, seen in sorted(low, key=lambda pair: pair[0]):
            trial = _without(program, seen, ctx)
            after = self._measure(trial, ctx)
            what = f"the loss changes from {last:.6g} to {after:.6g}"
            if not after - first <= self.rise:
                why = f"{what}; it was {first:.6g} at first and may rise by {self.rise:g}"
                ctx.missed(seen.activation.node, "the activation stays", why, code="loss")
            elif ctx.allow(
                seen.activation.node,
                f"replaced by the identity; {what}",
                code="nearly",
                why=f"its entropy {entropy:.3g} is below {self.eps:g}",
            ):
                program, last = trial, after
        return program

    def _measure(self, program: Program, ctx: Context) -> float:
        """The loss of a program, measured without its observers."""
        assert self.loss is not None
        editor = ctx.edit(program)
        for place in (n for nodes in observer_nodes(program).values() for n in nodes):
            editor.replace(editor.node(place), editor.node(place).all_input_nodes[0])
        with torch.no_grad():
            return float(self.loss(editor.finish().module))


def _why(seen: Seen, state: str) -> str:
    return f"each of its {seen.observer.on.numel()} units was {state} in all {int(seen.observer.seen)} observations"


def _silence(editor: Editor, seen: Seen, ctx: Context) -> None:
    """Replaces an activation that was never on by 0 and follows the 0 up to the sums that it reaches."""
    node = seen.activation.node
    try:
        silence = follow_zero(editor, editor.node(node), batch_statistics=True)
    except StuckError as error:
        ctx.missed(node, "the activation stays", str(error), code="stuck")
        return
    if ctx.allow(node, "replaced by 0", code="zero", why=_why(seen, "off")):
        silence()


def _is_split(seen: Seen) -> bool:
    """Whether each unit was always on or always off, and units of both kinds exist."""
    off, on, one = seen.off, seen.on, seen.activation
    both = bool((off | on).all()) and bool(off.any()) and bool(on.any())
    return both and one.zero_below and one.identity_above


def _units_off(axes: Axes, seen: Seen) -> set[int]:
    """The units of the positions that were always off; empty where a position belongs to no unit."""
    label: Label = axes.params[f"{seen.path}.on"][0]
    positions = seen.off.cpu().nonzero().flatten().numpy()
    units = {int(u) for column in label.columns for u in column[positions]}
    one_by_one = len(label.columns) == 1 and 0 not in units
    return units if one_by_one else set()


def _without(program: Program, seen: Seen, ctx: Context) -> Program:
    """Replaces an activation by the identity."""
    editor = ctx.edit(program)
    node, source = editor.node(seen.activation.node), editor.node(seen.activation.source)
    editor.replace(node, source)
    return editor.finish()
