"""Makes the methods of papers from what a user of `train_smaller` wishes."""

from __future__ import annotations

from bisect import bisect_left
from math import ceil
from typing import Any

import numpy as np
import torch

from fxprune.analysis.cache import solved
from fxprune.analysis.group import find_groups
from fxprune.cost import cost_of
from fxprune.errors import BudgetError
from fxprune.remark import Remark
from fxprune.structure.blocks import find_blocks
from fxprune.training import Settings, Shrinker
from fxprune.training.history import size_of
from fxprune_passes.methods.bernoulli_layers import BernoulliLayers
from fxprune_passes.methods.complexity_aware import ComplexityAware
from fxprune_passes.methods.entropy_guided import EntropyGuided
from fxprune_passes.methods.neuron_importance import NeuronImportance
from fxprune_passes.methods.units.unit_quotas import UnitQuotas


def make_layers(shrinker: Shrinker, wish: Settings) -> BernoulliLayers:
    """Residual blocks go until the cost is as near to `keep` as whole blocks allow."""
    return BernoulliLayers(shrinker, **_gate_options(shrinker, wish))


def make_units_and_layers(shrinker: Shrinker, wish: Settings) -> ComplexityAware:
    """Residual blocks and units inside them go until the cost is at `keep`; units alone where there are no blocks."""
    options = _gate_options(shrinker, wish)
    if "alpha" not in options and not find_blocks(shrinker.program):
        options["alpha"] = 0.0
        wish.remarks.append(
            Remark(
                "missed",
                "train-smaller.no-blocks",
                shrinker.program.name,
                "only units are removed",
                "there are no residual blocks: removing a layer would cut the network in two",
                'insert shortcuts before training: fp.run(model, args, "insert-skips")',
            )
        )
    return ComplexityAware(shrinker, **options)


def make_importance(shrinker: Shrinker, wish: Settings) -> NeuronImportance:
    """The same share of the units of every layer goes, such that the cost comes to `keep`.

    The share is searched before training, on exact costs; latency is taken for MACs.
    """
    if wish.metric == "latency":
        wish.remarks.append(
            Remark(
                "missed",
                "train-smaller.metric",
                shrinker.program.name,
                "the method importance keeps a share of the MACs, not of the latency",
                "it removes units alone, whose effect on the latency is not known before",
                'choose metric="macs" or "params"; or the method units+layers',
            )
        )
    target, least = _share_of_units(shrinker, wish)
    rounds = wish.decided - wish.warm_up
    # A little more each round, so that rounding down leaves nothing for a round behind the last.
    share = min(1.0, (target + 1 / least) / rounds)
    chosen = {"warmup": wish.warm_up, "seed": wish.seed, **wish.options}
    return NeuronImportance(shrinker, share, target, **chosen)


def make_entropy(shrinker: Shrinker, wish: Settings) -> EntropyGuided:
    """The activation of the lowest entropy between two layers goes in each round, so that these are fused.

    `keep` is a share of the convolutions and linear layers, of each of which one activation has to go.
    """
    layers = size_of(shrinker.program).layers
    wanted = max(1, round((1 - wish.keep) * layers))
    epochs = max(1, wish.decided // wanted)
    rounds = min(wanted, wish.decided)
    where = shrinker.program.name
    wish.remarks.append(
        Remark(
            "analysis",
            "train-smaller.metric",
            where,
            f"the method entropy keeps {layers - wanted} of {layers} layers where it can, whatever the metric",
        )
    )
    if rounds < wanted:
        wish.remarks.append(
            Remark(
                "missed",
                "train-smaller.rounds",
                where,
                f"only {rounds} of {wanted} activations go",
                f"one goes in each round, and a round takes an epoch of the first {wish.decided}",
                f"train for {ceil(wanted / 0.6)} epochs or more",
            )
        )
    chosen = {"rounds": rounds, "epochs_per_round": epochs, "between_layers": True}
    return EntropyGuided(shrinker, None, **{**chosen, "move_padding": True, **wish.options})


def _gate_options(shrinker: Shrinker, wish: Settings) -> dict[str, Any]:
    if wish.settle_on is None:
        wish.remarks.append(
            Remark(
                "missed",
                "train-smaller.no-validation",
                shrinker.program.name,
                "gates are decided by running means of what training has seen",
                "there are no validation data",
                "pass validation=...: a loader of data that training does not see",
            )
        )
    return {
        "keep": wish.keep,
        "metric": wish.metric,
        "epochs": wish.epochs,
        "start_after": wish.warm_up,
        "settle_at": wish.decided,
        "settle_on": wish.settle_on,
        "seed": wish.seed,
        **wish.options,
    }


def _share_of_units(shrinker: Shrinker, wish: Settings) -> tuple[float, int]:
    """The share of units whose removal from every layer brings the cost nearest to `keep`, and the least width.

    Raises:
        BudgetError: with one unit left in every layer the cost is still above `keep`.
    """
    program = shrinker.whole_program()
    twin = Shrinker(program, torch.optim.SGD(program.module.parameters(), 0.0))
    widths = NeuronImportance(twin, **{**wish.options, "verify": False}).widths
    axes = solved(twin.program)
    groups = [g for g in find_groups(axes) if g.name in widths]
    cost = cost_of(twin.program, axes, "params" if wish.metric == "params" else "macs")

    def left(target: float) -> float:
        quotas, gone = UnitQuotas(1.0, target, "original"), np.zeros(axes.n_units, bool)
        for group in groups:
            gone[group.units[: quotas.in_all(len(group))]] = True
        return cost(gone) / whole

    whole = cost(np.zeros(axes.n_units, bool))
    if left(1.0) > wish.keep:
        raise BudgetError(
            f"keep={wish.keep} of {wish.metric} cannot be reached",
            why=f"with one unit left in each of {len(groups)} layers, a share of {left(1.0):.3f} is left",
            do="choose a larger keep, or ignore less",
        )
    steps = sorted({k / len(g) for g in groups for k in range(1, len(g))})
    place = bisect_left(steps, -wish.keep, key=lambda share: -left(share))
    near = steps[max(0, place - 1) : place + 1]
    target = min(near, key=lambda share: abs(left(share) - wish.keep))
    return target, min(map(len, groups))
