"""How much of a network is left as layers go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fxprune.depth.layer import Layer
from fxprune.depth.order import Order
from fxprune.errors import BudgetError
from fxprune.graph.program import Program
from fxprune.latency import LatencyTable
from fxprune.latency.predict import check_runs
from fxprune.structure.blocks import Blocks

DepthMetric = Literal["macs", "params", "layers", "latency"]


@dataclass(frozen=True)
class Amount:
    """What the whole network has of a metric, and what goes with each layer.

    Attributes:
        metric: macs, params, layers, or latency, in milliseconds of the nodes in a run of the whole network.
        whole: of the network.
        parts: of each layer.
    """

    metric: DepthMetric
    whole: float
    parts: dict[Layer, float]

    def left(self, gone: Sequence[tuple[Layer, float]]) -> float:
        """The share that is left without some layers."""
        return (self.whole - sum(self.parts[layer] for layer, _ in gone)) / max(self.whole, 1e-12)


def amount_of(
    program: Program,
    layers: Sequence[Layer],
    blocks: Blocks,
    metric: DepthMetric,
    table: LatencyTable | None,
) -> Amount:
    """Measures a metric of a network and its layers.

    Args:
        program: the network.
        layers: of it.
        blocks: its residual blocks.
        metric: what to measure.
        table: the measured times, for latency.

    Raises:
        OptionError: the latency of a network without data cannot be measured.
    """
    if table is not None:
        check_runs(program)
        times = dict(zip(program.nodes, table.nodes(program), strict=True))
        return Amount(
            metric,
            sum(times.values()),
            {x: sum(times[n] for n in (*x.nodes, *(b.add for b in x.blocks))) for x in layers},
        )
    if metric == "macs":
        return Amount(metric, blocks.macs, {x: x.macs for x in layers})
    if metric == "params":
        return Amount(metric, blocks.size, {x: x.size for x in layers})
    return Amount(metric, len(layers), dict.fromkeys(layers, 1))


def take(
    order: Order, amount: Amount, n: int | None, keep: float | None
) -> list[tuple[Layer, float]]:
    """The layers that go, in order, until so many are gone or no more than a share is left.

    Raises:
        BudgetError: there are too few.
    """
    chosen: list[tuple[Layer, float]] = []
    while len(chosen) != n if keep is None else amount.left(chosen) > keep:
        wish = f"n={n}" if keep is None else f"keep={keep} of {amount.metric}"
        chosen.append(following(order, wish, len(chosen), amount.left(chosen)))
    return chosen


def following(order: Order, wish: str, gone: int, left: float) -> tuple[Layer, float]:
    """The next layer that goes.

    Raises:
        BudgetError: there is none.
    """
    found = next(order, None)
    if found is None:
        raise BudgetError(
            f"{wish} cannot be reached",
            why=f"{gone} layers can go, and leave a share of {left:.3f}",
            do="list the blocks with the pass residual-blocks; insert-skips puts shortcuts around layers",
        )
    return found
