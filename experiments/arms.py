"""The methods as they are put to work in runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from experiments.task import Context
from fxprune.training import Shrinker
from fxprune_passes.methods import (
    BernoulliLayers,
    ComplexityAware,
    EntropyGuided,
    NeuronImportance,
)
from fxprune_passes.methods.method import Method

# Epochs behind the last round of method 3: with more of them, whatever went is learned again and nothing is compared.
RECOVERY = 3
Make = Callable[[Shrinker, Context], Method]


def importance(target: float, share: float, **options: Any) -> Make:
    """Method 3, as in the paper: every step counts; rounds end `RECOVERY` epochs before training does."""

    def make(shrinker: Shrinker, context: Context) -> Method:
        rounds = math.ceil(target / share - 1e-9)
        return NeuronImportance(
            shrinker,
            share,
            target,
            warmup=max(1, context.epochs - rounds - RECOVERY),
            seed=context.seed,
            verify=False,
            **{"observe_every": 1, **options},
        )

    return make


def layers(price: float, **options: Any) -> Make:
    """Method 1: a block stays where leaving it out would raise the loss by more than its price.

    A fifth of training is a warm-up, and behind two fifths of it every gate is decided on held-out samples: earlier,
    hardly a block is worth its price.
    """

    def make(shrinker: Shrinker, context: Context) -> Method:
        chosen = {**_life(context, 0.2, 0.4), **options}
        return BernoulliLayers(shrinker, context.samples, -price * context.samples, **chosen)

    return make


def layers_to(keep: float, metric: str = "latency", **options: Any) -> Make:
    """Method 1 at a size: the price is found while it trains.

    A tenth of training is a warm-up, and behind three tenths of it every gate is decided on held-out samples.
    """

    def make(shrinker: Shrinker, context: Context) -> Method:
        chosen = {**_life(context, 0.1, 0.3), **options}
        return BernoulliLayers(shrinker, keep=keep, metric=metric, **chosen)

    return make


def complexity(nu: float, alpha: float, beta: float = 1.0, **options: Any) -> Make:
    """Method 2: two-pass for blocks, trapezoids for units; warm-up and decisions as in `layers`."""

    def make(shrinker: Shrinker, context: Context) -> Method:
        chosen = {**UNITS, **_life(context, 0.2, 0.4), **options}
        return ComplexityAware(shrinker, nu, alpha, beta, **chosen)

    return make


def complexity_to(keep: float, alpha: float, metric: str = "latency", **options: Any) -> Make:
    """Method 2 at a size; warm-up and decisions as in `layers_to`."""

    def make(shrinker: Shrinker, context: Context) -> Method:
        chosen = {**UNITS, **_life(context, 0.1, 0.3), **options}
        return ComplexityAware(shrinker, alpha=alpha, keep=keep, metric=metric, **chosen)

    return make


UNITS = {"estimator": "two-pass", "unit_estimator": "trapezoid", "unit_rate": 0.3}


def _life(context: Context, warm: float, decided: float) -> dict[str, Any]:
    """Gates are drawn between two shares of the training."""
    return {
        "rate": 0.04,
        "measure_every": 2,
        "start": 1.0,
        "start_after": max(1, round(warm * context.epochs)),
        "settle_at": max(2, round(decided * context.epochs)),
        "settle_on": context.loss,
        "keep_after": context.epochs,
        "insert": not context.resumed,
        "seed": context.seed,
    }


def entropy(zeta: float, rounds: int, **options: Any) -> Make:
    """Method 4. Rounds are of equal length; the last but one removes, the last recovers."""

    def make(shrinker: Shrinker, context: Context) -> Method:
        chosen = dict(options)
        if "eps" in chosen:
            chosen |= {"loss": torch.no_grad()(lambda module: float(context.loss(module)))}
        return EntropyGuided(shrinker, zeta, **_rounds(context, rounds), **chosen)

    return make


def easier(rounds: int, gone: int | None = None, **options: Any) -> Make:
    """EASIER: an activation goes behind each of the first `gone` rounds; None: behind all but the last.

    Its arm restarts the rate with each round: `Arm.rounds`.
    """

    def make(shrinker: Shrinker, context: Context) -> Method:
        lengths = _rounds(context, rounds)
        if gone is not None:
            lengths["rounds"] = gone
        return EntropyGuided(shrinker, None, **lengths, **options)

    return make


def _rounds(context: Context, rounds: int) -> dict[str, Any]:
    epochs = max(1, context.epochs // rounds)
    return {"epochs_per_round": epochs, "rounds": rounds - 1, "evaluate": context.accuracy}
