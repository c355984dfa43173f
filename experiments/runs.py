"""Every table of the experiments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from experiments.task import Arm, Context, Length, Task, controls
from fxprune.training import Shrinker
from fxprune_passes.methods import (
    BernoulliLayers,
    ComplexityAware,
    EntropyGuided,
    NeuronImportance,
)
from fxprune_passes.methods.method import Method

DENSE = Arm("dense")
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


def decide_at(context: Context) -> int:
    """The epoch at whose end gates are decided: after 60 % of the training."""
    return max(1, round(0.6 * context.epochs))


def layers(price: float, **options: Any) -> Make:
    """Method 1: a block stays where leaving it out would raise the loss by more than its price."""

    def make(shrinker: Shrinker, context: Context) -> Method:
        log_g = -price * context.samples
        chosen = {"rate": 0.02, "keep_after": 1000, "settle_at": decide_at(context), **options}
        return BernoulliLayers(shrinker, context.samples, log_g, seed=context.seed, **chosen)

    return make


def complexity(nu: float, alpha: float, beta: float, rate: float) -> Make:
    """Method 2."""

    def make(shrinker: Shrinker, context: Context) -> Method:
        return ComplexityAware(
            shrinker,
            nu,
            alpha,
            beta,
            rate=rate,
            unit_rate=rate,
            keep_after=1000,
            settle_at=decide_at(context),
            seed=context.seed,
        )

    return make


def entropy(zeta: float | None, rounds: int, **options: Any) -> Make:
    """Method 4; with `zeta=None` EASIER. Rounds are of equal length; the last but one removes, the last recovers."""

    def make(shrinker: Shrinker, context: Context) -> Method:
        chosen = dict(options)
        if zeta is None:
            chosen |= {"evaluate": context.accuracy}
        elif "eps" in chosen:
            chosen |= {"loss": context.loss}
        epochs = max(1, context.epochs // rounds)
        return EntropyGuided(shrinker, zeta, epochs_per_round=epochs, rounds=rounds - 1, **chosen)

    return make


# Method 2 at several prices.
LAYERS_AND_UNITS = tuple(
    Arm(f"complexity, nu {nu:g}, alpha 0.8, beta 1", complexity(nu, 0.8, 1.0, 0.5))
    for nu in (0.03, 0.1, 0.3, 1.0)
)


def _pruned_neurons(share: float, step: float) -> tuple[Arm, ...]:
    """Method 3 at a share of the hidden units, the paper's control, the controls of all tables."""
    name = f"importance, {share:.0%}"
    return (
        Arm(name, importance(share, step)),
        Arm(f"random rounds, {share:.0%}", importance(share, step, criterion="random")),
        *controls(name),
    )


TASKS: tuple[Task, ...] = (
    Task(
        "MNIST, MLP 784-50-30-10",
        network="MLP 784-50-30-10",
        data="mnist",
        quick=Length(15),
        full=Length(60),
        arms=(
            DENSE,
            *(a for s in (0.3, 0.5, 0.68) for a in _pruned_neurons(s, 0.1)),
            Arm("signed importance, 68%", importance(0.68, 0.1, signed=True)),
        ),
        note="Shares of hidden units, a tenth of each layer's width a round; `random rounds` is the paper's control.",
    ),
    Task(
        "MNIST, MLP of 6 layers",
        network="MLP of 6 layers",
        data="mnist",
        quick=Length(15),
        full=Length(60),
        arms=(
            DENSE,
            Arm("entropy, zeta 0.5", entropy(0.5, 5, most=0.9, eps=1.1, rise=0.02)),
            Arm("EASIER", entropy(None, 7, delta=0.01)),
            *controls("entropy, zeta 0.5"),
            *controls("EASIER"),
        ),
        rate=0.02,
        note="The sizes of the entropy-guided networks count the weights that are 0.",
    ),
    Task(
        "MNIST, residual MLP of 8 blocks",
        network="residual MLP",
        data="mnist",
        quick=Length(10),
        full=Length(60),
        arms=(
            DENSE,
            Arm("layers, price 0.02", layers(0.02)),
            Arm("layers, price 0.05", layers(0.05)),
            Arm("layers, price 0.2", layers(0.2)),
            Arm("layers, price 0.05, first-order", layers(0.05, estimator="first-order")),
            *LAYERS_AND_UNITS,
            *controls("layers, price 0.05"),
        ),
    ),
    Task(
        "MNIST, LeNet-5, units",
        network="LeNet-5",
        data="mnist",
        quick=Length(12, 20_000),
        full=Length(40),
        arms=(
            DENSE,
            *(a for s in (0.3, 0.5, 0.68) for a in _pruned_neurons(s, 0.15)),
        ),
        note="Shares are of hidden units and channels, 15 % of each layer's width a round.",
    ),
    Task(
        "MNIST, LeNet-5 with shortcuts, layers",
        network="LeNet-5",
        data="mnist",
        prepare="insert-skips",
        quick=Length(10, 20_000),
        full=Length(40),
        arms=(
            DENSE,
            Arm("layers, price 0.05", layers(0.05)),
            Arm("layers, price 0.2", layers(0.2)),
            *LAYERS_AND_UNITS,
            *controls("layers, price 0.2"),
        ),
        rate=0.02,
        note="`insert-skips` puts a shortcut around each layer first; dense is that network.",
    ),
    Task(
        "CIFAR-10 (JPEG), ResNet-20",
        network="ResNet-20",
        data="cifar10-jpeg",
        quick=Length(8, 5_000),
        full=Length(160),
        arms=(
            DENSE,
            Arm("layers, price 0.05", layers(0.05, estimator="first-order")),
            Arm("complexity, nu 0.25", complexity(0.25, 0.8, 1.0, 0.5)),
            Arm("complexity, nu 0.081", complexity(0.081, 0.8, 1.0, 0.5)),
            Arm("complexity, nu 0.03", complexity(0.03, 0.8, 1.0, 0.5)),
            Arm("complexity, units, nu 0.25", complexity(0.25, 0.0, 0.0, 2.0)),
            Arm("complexity, units, nu 0.081", complexity(0.081, 0.0, 0.0, 2.0)),
            Arm("EASIER", entropy(None, 8, delta=0.03)),
            Arm("entropy, zeta 0.5", entropy(0.5, 4, most=0.9, eps=0.95, rise=0.1)),
            Arm("layers, price 0.05, two-pass", layers(0.05)),
            *controls("layers, price 0.05"),
            *controls("complexity, nu 0.25"),
            *controls("complexity, units, nu 0.25"),
        ),
        metric="macs",
        rate=0.1,
        decay=5e-4,
        batch=64,
        note="nu 0.081 is the paper's. The sizes of the entropy-guided networks count the weights that are 0.",
    ),
    Task(
        "CIFAR-10 (JPEG), simple CNN",
        network="simple CNN",
        data="cifar10-jpeg",
        quick=Length(10, 5_000),
        full=Length(100),
        arms=(DENSE, *_pruned_neurons(0.41, 0.1)),
        metric="macs",
        rate=0.02,
        note="Two convolution blocks and three linear layers from 2048, as the paper describes its network.",
    ),
    Task(
        "CIFAR-10 (JPEG), VGG-16 with shortcuts, short",
        network="VGG-16",
        data="cifar10-jpeg",
        prepare="insert-skips",
        quick=Length(2, 2_000),
        full=Length(160),
        arms=(
            DENSE,
            Arm("layers, price 0.1", layers(0.1, estimator="first-order", rate=0.5)),
            *controls("layers, price 0.1"),
        ),
        metric="macs",
        rate=0.01,
        note="Short: it shows that the method runs there, not what it reaches.",
    ),
)
