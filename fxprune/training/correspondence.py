"""Which tensor of a smaller program corresponds to which tensor of the program before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from fxprune.algebra.label import IntArray
from fxprune.graph.leaf import is_inside_leaf
from fxprune.graph.program import Program
from fxprune.plan import Plan
from fxprune.shrink.tensors import slice_axes
from fxprune.training.errors import TrainingError

Tensor = torch.Tensor
Cut = Mapping[int, IntArray]
WHOLE: Cut = {}


@dataclass(frozen=True, eq=False)
class Correspondence:
    """The tensors of a program before and after a change, by name; names do not change.

    Attributes:
        before: every parameter and buffer of the program before; a shared tensor appears under each name.
        after: the same for the program after.
        kept: the original positions that are kept, as tensor -> axis -> positions, for axes that lose some.
        rewritten: the names of tensors whose values a pass recomputed: they are not slices of the old values.
        gates: the names of tensors of the program after that belong to leaf modules.
    """

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    kept: Mapping[str, Cut]
    rewritten: frozenset[str]
    gates: frozenset[str]

    @property
    def dropped(self) -> tuple[str, ...]:
        """The names of tensors that were removed."""
        return tuple(name for name in self.before if name not in self.after)

    @property
    def added(self) -> tuple[str, ...]:
        """The names of new tensors."""
        return tuple(name for name in self.after if name not in self.before)

    def cut(self, name: str) -> Cut:
        """Returns the kept positions of a tensor, by axis; empty for a tensor that loses none."""
        return self.kept.get(name, WHOLE)

    def successors(self) -> dict[Tensor, Successor]:
        """Returns the successor of every tensor of the program before, by the tensor itself.

        Raises:
            TrainingError: a shared tensor has become two tensors.
        """
        found: dict[Tensor, Successor] = {}
        for name, old in self.before.items():
            new = self.after.get(name)
            known = found.get(old)
            if known is None or known.tensor is None:
                found[old] = Successor(name, new, self.cut(name))
            elif new is not None and new is not known.tensor:
                raise TrainingError(
                    "a shared tensor has become two",
                    where=f"{known.name} and {name}",
                    why="the optimizer has one state for both, which cannot belong to two tensors",
                    do="leave out the pass that separates them",
                )
        return found


@dataclass(frozen=True, eq=False)
class Successor:
    """The successor of a tensor.

    Attributes:
        name: its first name that still exists.
        tensor: the new tensor, or None if it was removed.
        cut: the kept positions, by axis.
    """

    name: str
    tensor: Tensor | None
    cut: Cut


def correspond(before: Program, after: Program, plans: Iterable[Plan]) -> Correspondence:
    """Derives the correspondence from the plans, and checks it against the values of the tensors.

    Args:
        before: the program before.
        after: the program after the rewrites.
        plans: the plans that were applied, in order.
    """
    old, new = before.tensors(), after.tensors()
    kept = {name: cut for name, cut in compose(plans).items() if name in old and name in new}
    rewritten = frozenset(n for n in new if n in old and not _is_slice(old[n], new[n], kept.get(n)))
    return correspond_by_name(before, after, kept, rewritten)


def correspond_by_name(
    before: Program, after: Program, kept: Mapping[str, Cut], rewritten: frozenset[str]
) -> Correspondence:
    """Returns the correspondence of programs of which it is known what was cut and what was recomputed."""
    new = after.tensors()
    gates = frozenset(n for n in new if is_inside_leaf(after.module, n))
    return Correspondence(before.tensors(), new, kept, rewritten, gates)


def compose(plans: Iterable[Plan]) -> dict[str, Cut]:
    """Returns the positions of the first program's tensors that remain after several plans, one after the other."""
    kept: dict[str, dict[int, IntArray]] = {}
    for plan in plans:
        for name, cut in plan.kept.items():
            known = kept.setdefault(name, {})
            for axis, positions in cut.items():
                known[axis] = known[axis][positions] if axis in known else positions
    return dict(kept)


def _is_slice(old: Tensor, new: Tensor, cut: Cut | None) -> bool:
    """Returns whether the new tensor holds exactly the kept values of the old one, bit by bit."""
    if new is old:
        return True
    expected = slice_axes(old.detach(), cut) if cut else old.detach()
    if expected.shape != new.shape or expected.dtype != new.dtype:
        return False
    if expected.is_meta or new.is_meta or torch.equal(expected, new):
        return True
    return bool(torch.isclose(expected, new, rtol=0, atol=0, equal_nan=True).all())
