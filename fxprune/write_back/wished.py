"""Decides what goes so that a model becomes one of its class with a wished config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product

import numpy as np
from torch import nn

from fxprune.algebra.label import IntArray
from fxprune.analysis.cache import solved, with_free_outputs
from fxprune.analysis.explain import explain_axis
from fxprune.analysis.group import Group, find_groups
from fxprune.errors import BudgetError, FxpruneError, PlanError, ScoreError
from fxprune.graph.program import Program
from fxprune.importance.table import FloatArray
from fxprune.plan import Plan, plan_removal
from fxprune.remark import Remark
from fxprune.write_back.depth import without_layers
from fxprune.write_back.fits import Fitted
from fxprune.write_back.original import Original
from fxprune.write_back.reach import Component, Counts, components
from fxprune.write_back.rebuild import shapes_of
from fxprune.write_back.wish import Wish
from fxprune.write_back.write import written

_TRIES = 16
_NEAR = 3


class Wished:
    """A model that is to get another config.

    Args:
        model: the model that was captured.
        program: what was captured.
        fields: of its config -> the new numbers.
        capture: captures the model again once layers have left it.

    Attributes:
        model: the model, or what is left of it where layers leave.
        program: of that model; its outputs may get narrower.
        remarks: which layers left.

    Raises:
        OptionError, PlanError: see `Wish` and `without_layers`.
    """

    def __init__(
        self,
        model: nn.Module,
        program: Program,
        fields: Mapping[str, int],
        capture: Callable[[nn.Module], Program],
    ) -> None:
        wish = Wish(model, fields)
        self.remarks: list[Remark] = []
        self._wish: Wish | None = wish
        if wish.depths:
            shallower = without_layers(model, wish.builder, wish.depths, program)
            model, self.remarks = shallower.model, shallower.remarks
            program = capture(model)
            self._wish = Wish(model, wish.widths) if wish.widths else None
        self.model, self.program = model, with_free_outputs(program)
        self.axes = solved(self.program)
        self.groups = find_groups(self.axes)

    def decide(self, scores: FloatArray) -> Fitted:
        """The plan whose sizes are those of the wished config, and the smaller model of it.

        Of each group, the units with the lowest scores go. Sizes alone do not say whether a width of 24 for 32 means 3
        heads of 8 for 4, or 4 heads of 6: the plans are written back in turn, until one computes the same as a model
        of the wished config.

        Args:
            scores: of units, `[n_units]`.

        Raises:
            PlanError: no removal gives these sizes, or none that a model of the config computes.
            ScoreError: units that compete have no score.
            BudgetError: nothing would be removed.
        """
        wish = self._wish
        if wish is None:
            nothing = plan_removal(self.program, self.axes, ())
            return Fitted(nothing, self.remarks, self.model)
        self._check_others(wish)
        first: FxpruneError | None = None
        original = Original(self.model, self.program, wish.builder)
        for units in islice(self._removals(wish, scores), _TRIES):
            plan = plan_removal(self.program, self.axes, units)
            self._check_sizes(plan, wish)
            try:
                result = written(self.model, plan, config=wish.values, original=original)
            except FxpruneError as error:
                first = first or error
            else:
                return Fitted(plan, [*self.remarks, *result.remarks], result.model)
        assert first is not None, "there is a removal"
        raise PlanError(
            "the sizes of the wished config can be reached, and a model of it computes something else",
            where=first.where or type(self.model).__name__,
            why=": ".join(filter(None, (first.what, first.why))),
            do="change the numbers that belong together, such as heads with the hidden size, or use keep=... and "
            "fits=model",
        )

    def _removals(self, wish: Wish, scores: FloatArray) -> Iterator[IntArray]:
        """The units that may go, the likeliest first; the same numbers of units in components that are alike."""
        alike: dict[object, list[Component]] = {}
        for component in components(self.axes, self.groups, wish.shapes):
            alike.setdefault(component.key, []).append(component)
        ways = [self._ways(several[0], wish) for several in alike.values()]
        if not any(any(c) for counts in ways for c in counts):
            raise BudgetError(
                "nothing would be removed",
                why="no tensor of the class gets smaller with these numbers",
                do="choose smaller numbers in to=...",
            )
        for chosen in product(*ways):
            found = [np.zeros(0, np.int64)]
            for counts, several in zip(chosen, alike.values(), strict=True):
                for component in several:
                    found += _lowest(component.groups, counts, scores)
            yield np.concatenate(found)

    def _ways(self, component: Component, wish: Wish) -> list[Counts]:
        """The numbers of units that the groups of a component may lose; those first that the fields speak of."""

        def likely(counts: Counts) -> int:
            sizes = ((len(g), len(g) - n) for g, n in zip(component.groups, counts, strict=True))
            return sum(wish.agrees(old, new) for old, new in sizes if old != new)

        ways = component.solutions()
        if not ways:
            axis, can = component.unreachable()
            near = sorted(sorted(can, key=lambda n: abs(n - axis.wanted))[: 2 * _NEAR])
            raise PlanError(
                f"{wish.fields_of(axis.tensor, axis.axis)} cannot be reached",
                where=f"{axis.tensor}, axis {axis.axis}",
                why=f"{axis.wanted} of its {axis.columns[0].shape[1]} positions would have to stay; whole units leave "
                f"{', '.join(map(str, near))}"
                + (", not together with its other axes" if axis.wanted in can else ""),
                do="choose numbers that leave whole units, as whole heads are",
            )
        return sorted(ways, key=likely, reverse=True)

    def _check_others(self, wish: Wish) -> None:
        """Refuses lengths of axes that no unit cuts."""
        before = shapes_of(self.model)
        used = {n for names in self.axes.names.values() for n in names}
        for name, shape in before.items():
            for i, (old, new) in enumerate(zip(shape, wish.shapes[name], strict=True)):
                labels = self.axes.params.get(name)
                if old == new or (labels is not None and any(c.any() for c in labels[i].columns)):
                    continue
                if labels is None and name in used:
                    continue  # another name of a tensor that is looked at
                raise PlanError(
                    f"{wish.fields_of(name, i)} cannot be reached",
                    where=f"{name}, axis {i}",
                    why=explain_axis(self.axes, name, i).frozen.replace("\n", " ")
                    if labels is not None
                    else "the captured forward does not use this tensor",
                    do="leave that size as it is",
                )

    def _check_sizes(self, plan: Plan, wish: Wish) -> None:
        for name, cut in plan.kept.items():
            for axis, positions in cut.items():
                if len(positions) != wish.shapes[name][axis]:
                    raise PlanError(
                        f"{wish.fields_of(name, axis)} cannot be reached",
                        where=f"{name}, axis {axis}",
                        why=f"{len(positions)} positions would stay, and {wish.shapes[name][axis]} are wished",
                        do="choose other numbers",
                    )


def _lowest(groups: Sequence[Group], counts: Counts, scores: FloatArray) -> Iterator[IntArray]:
    """The units of each group with the lowest scores, so many."""
    for group, count in zip(groups, counts, strict=True):
        if count and np.isnan(scores[group.units]).any():
            raise ScoreError(
                "the criterion does not score units that have to go",
                where=group.name,
                do="choose another criterion",
            )
        yield group.units[np.argsort(scores[group.units], kind="stable")][:count]
