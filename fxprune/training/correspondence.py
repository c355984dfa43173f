"""Which tensor of a smaller program each tensor of the program before it has become."""

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
    """Tensors before and after, by name; names are stable.

    Attributes:
        before: every parameter and buffer of the program before; one of two names stands under both.
        after: the same of the program after.
        kept: tensor -> axis -> the positions of the program before that stay; only what loses some.
        rewritten: names whose numbers a pass worked out anew: not a slice of what they were.
        gates: names of the program after that belong to leaf modules.
    """

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    kept: Mapping[str, Cut]
    rewritten: frozenset[str]
    gates: frozenset[str]

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names that are gone."""
        return tuple(name for name in self.before if name not in self.after)

    @property
    def added(self) -> tuple[str, ...]:
        """Names that are new."""
        return tuple(name for name in self.after if name not in self.before)

    def cut(self, name: str) -> Cut:
        """What stays of a tensor, axis by axis; nothing for one that stays whole."""
        return self.kept.get(name, WHOLE)

    def successors(self) -> dict[Tensor, Successor]:
        """What every tensor of the program before has become, by the tensor itself.

        Raises:
            TrainingError: one tensor of two names has become two.
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
                    why="one state of the optimizer cannot belong to both",
                    do="leave out the pass that separates them",
                )
        return found


@dataclass(frozen=True, eq=False)
class Successor:
    """What became of one tensor: its first name that is left, the new tensor or None, what stays of it."""

    name: str
    tensor: Tensor | None
    cut: Cut


def correspond(before: Program, after: Program, plans: Iterable[Plan]) -> Correspondence:
    """Works the correspondence out from what plans keep, and holds the numbers against it.

    Args:
        before: the program before.
        after: what a rewrite made of it.
        plans: the plans that it applied, in order.
    """
    old, new = before.tensors(), after.tensors()
    kept = {name: cut for name, cut in compose(plans).items() if name in old and name in new}
    rewritten = frozenset(n for n in new if n in old and not _is_slice(old[n], new[n], kept.get(n)))
    gates = frozenset(n for n in new if is_inside_leaf(after.module, n))
    return Correspondence(old, new, kept, rewritten, gates)


def compose(plans: Iterable[Plan]) -> dict[str, Cut]:
    """What several plans, one after the other, keep of the first one's tensors."""
    kept: dict[str, dict[int, IntArray]] = {}
    for plan in plans:
        for name, cut in plan.kept.items():
            known = kept.setdefault(name, {})
            for axis, positions in cut.items():
                known[axis] = known[axis][positions] if axis in known else positions
    return dict(kept)


def _is_slice(old: Tensor, new: Tensor, cut: Cut | None) -> bool:
    """Whether the new tensor holds the numbers that stay of the old one, bit by bit."""
    if new is old:
        return True
    expected = slice_axes(old.detach(), cut) if cut else old.detach()
    if expected.shape != new.shape or expected.dtype != new.dtype:
        return False
    if expected.is_meta or new.is_meta or torch.equal(expected, new):
        return True
    return bool(torch.isclose(expected, new, rtol=0, atol=0, equal_nan=True).all())
