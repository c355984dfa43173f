"""What a measurement of sensitivity gives: a table, a figure, and shares to prune by."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fxprune.analysis.cache import solved
from fxprune.analysis.group import find_groups
from fxprune.cost import Metric
from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.importance.table import FloatArray
from fxprune.latency import LatencyTable
from fxprune.plan.choose import Target, find_candidates
from fxprune.plan.limits import Limits
from fxprune.remark import Remark
from fxprune.report.curves import Curves
from fxprune.report.figure import new_figure
from fxprune.sensitivity.fill import Filling, price_of

_NAMED = 10  # curves in a figure that have a colour and a name
_RISE = "rise of the loss"


@dataclass(frozen=True)
class GroupResponse:
    """How the loss answers to the removal of a group's units.

    Attributes:
        name: of the group.
        tied: the names of the groups that lose equal shares with it, itself included.
        units: how many there are; of tied groups, how many times some can go.
        removed: how many of them go at each point, ascending.
        rise: by how much the mean loss is higher then.
    """

    name: str
    tied: tuple[str, ...]
    units: int
    removed: tuple[int, ...]
    rise: tuple[float, ...]


@dataclass(frozen=True)
class BlockResponse:
    """How the loss answers to the removal of a residual block.

    Attributes:
        path: of the block.
        kind: the class of its module.
        size: the number of elements of the parameters that go with it.
        macs: the multiply-accumulates that go with it.
        rise: by how much the mean loss is higher without its branch.
    """

    path: str
    kind: str
    size: int
    macs: int
    rise: float


@dataclass(frozen=True, eq=False)
class Basis:
    """What was measured.

    Attributes:
        program: the network.
        scores: of its units; they go in this order.
        ignored: parameters that keep their outputs.
        limits: which groups are tied.
    """

    program: Program
    scores: FloatArray
    ignored: frozenset[str]
    limits: Limits


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What `sensitivity` returns; prints as tables.

    Attributes:
        name: the class of the network.
        loss: the mean loss of the network as it is.
        shares: of the units of each group at which the loss was measured.
        groups: the answers to the removal of units, in the order of the graph.
        blocks: the answers to the removal of residual blocks, in the order of the graph.
        remarks: of capture and of the analysis, on scores, and on groups that were not measured.
        basis: what was measured.
    """

    name: str
    loss: float
    shares: tuple[float, ...]
    groups: tuple[GroupResponse, ...]
    blocks: tuple[BlockResponse, ...]
    remarks: tuple[Remark, ...]
    basis: Basis = field(repr=False)

    def __str__(self) -> str:
        parts = [f"{self.name}: loss {self.loss:.4g}; by how much it rises without"]
        if self.groups:
            header = ["units of group", "units", *(f"{share:.0%}" for share in self.shares)]
            align = ["left", *["right"] * (len(header) - 1)]
            rows = [(g.name, g.units, *self._cells(g)) for g in self.groups]
            parts.append(tabulate(rows, header, "simple", colalign=align, disable_numparse=True))
        if self.blocks:
            lines = [
                (b.path, b.kind, f"{b.size:,}", f"{b.macs:,}", _signed(b.rise)) for b in self.blocks
            ]
            names = ["residual block", "class", "parameters", "MACs", "rise"]
            align = ["left", "left", "right", "right", "right"]
            parts.append(tabulate(lines, names, "simple", colalign=align, disable_numparse=True))
        return "\n\n".join(parts)

    def _cells(self, group: GroupResponse) -> list[str]:
        """The rise at each share; that of the largest number of units below it, and "-" below one unit."""
        at = [
            sum(n <= share * group.units + 1e-9 for n in group.removed) - 1 for share in self.shares
        ]
        return [_signed(group.rise[i]) if i >= 0 else "-" for i in at]

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers as plain data."""
        return {
            "name": self.name,
            "loss": self.loss,
            "shares": list(self.shares),
            "groups": [asdict(g) for g in self.groups],
            "blocks": [asdict(b) for b in self.blocks],
            "remarks": [r.to_json() for r in self.remarks],
            "curves": [c.to_json() for c in self.curves()],
        }

    def curves(self) -> tuple[Curves, ...]:
        """The curves for a report: the groups whose loss rises most, and the residual blocks in graph order."""
        groups = {g.name: self._points(g) for g in self._steepest()}
        blocks = {"without the block": [(i + 1, b.rise) for i, b in enumerate(self.blocks)]}
        most = f"The {len(groups)} of {len(self.groups)} groups whose loss rises most"
        least = ", ".join(b.path for b in sorted(self.blocks, key=lambda b: b.rise)[:_NAMED])
        plain = f"The loss of the network as it is: {self.loss:.4g}."
        found = []
        if groups:
            title, x = "Sensitivity of groups", "share of the units that goes"
            found.append(Curves(title, x, _RISE, groups, f"{most}. {plain}"))
        if self.blocks:
            title, x = "Sensitivity of residual blocks", "number of the block"
            found.append(Curves(title, x, _RISE, blocks, f"Least needed: {least}. {plain}"))
        return tuple(found)

    def _steepest(self) -> list[GroupResponse]:
        return sorted(self.groups, key=lambda g: -max(g.rise, default=0.0))[:_NAMED]

    def _points(self, group: GroupResponse) -> list[tuple[float, float]]:
        removed = [n / group.units for n in group.removed]
        return [(0.0, 0.0), *zip(removed, group.rise, strict=True)]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Plots the rise of the loss to an image file, PNG by default: a curve a group, a bar a block.

        Raises:
            OptionError: matplotlib is not installed, or nothing was measured.
        """
        panels = [
            draw for draw, has in ((self._lines, self.groups), (self._bars, self.blocks)) if has
        ]
        if not panels:
            raise OptionError("there is nothing to plot", why="no group and no block was measured")
        height = max(5, 1 + len(self.blocks) / 5)
        figure = new_figure("Sensitivity.plot", 7 * len(panels), height)
        for axes, draw in zip(
            figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True
        ):
            draw(axes)
        figure.savefig(Path(path))

    def _lines(self, axes: Any) -> None:
        named = self._steepest()
        for group in self.groups:
            look = {"label": group.name} if group in named else {"color": "0.8", "zorder": 1}
            axes.plot(*zip(*self._points(group), strict=True), marker=".", **look)
        axes.set_xlabel("share of the units that goes")
        axes.set_ylabel(_RISE)
        axes.legend(fontsize="small")

    def _bars(self, axes: Any) -> None:
        axes.barh([b.path for b in self.blocks], [b.rise for b in self.blocks])
        axes.invert_yaxis()
        axes.set_xlabel("rise of the loss without the block")

    def keep(
        self,
        share: float = 0.5,
        metric: Metric = "macs",
        *,
        at_least: int = 1,
        multiple_of: int = 1,
        latencies: LatencyTable | None = None,
    ) -> dict[str, float]:
        """The share of its units that each group should keep: `fp.prune(program, keep=found.keep(0.5))`.

        Units go where the loss rises least for what is saved, as if rises added up, until the rise for the last MAC
        (parameter, unit) is about the same in every group. No group loses more than was measured.

        Args:
            share: of the metric that stays, above 0 and at most 1.
            metric: macs, params, units (of all groups together), or latency, as it is predicted: nothing is measured
                afterwards.
            at_least: units that every group keeps.
            multiple_of: lengths of shrunk axes are multiples of this; give `prune` the same.
            latencies: for latency, where measured times are kept. None: `fp.LatencyTable()`.

        Raises:
            OptionError: one of the values cannot be used.
            BudgetError: even with all that was measured, more than this share is left.
        """
        target = Target(share, metric, "global", at_least, multiple_of)
        basis = self.basis
        axes = solved(basis.program)
        groups = find_groups(axes)
        found = find_candidates(axes, groups, basis.scores, target, basis.ignored, basis.limits)
        table = latencies or (LatencyTable() if metric == "latency" else None)
        price = price_of(basis.program, axes, metric, table)
        filling = Filling(price, axes, found, target, {g.name: g for g in self.groups})
        removed = dict(zip((g.name for g in found.groups), filling.to_budget(share), strict=True))
        if table is not None:
            table.save()
        sizes = dict(zip((g.name for g in found.groups), found.sizes.tolist(), strict=True))
        return {
            name: 1 - int(removed[g.name]) / sizes[g.name] if g.name in sizes else 1.0
            for g in self.groups
            for name in g.tied
        }


def _signed(rise: float) -> str:
    return f"{rise:+.4g}"
