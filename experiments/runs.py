"""Every table of the experiments."""

from __future__ import annotations

from collections.abc import Callable

from experiments.task import Arm, Context, Length, Task, controls
from fxprune.training import Shrinker
from fxprune_passes.methods import NeuronImportance
from fxprune_passes.methods.method import Method

DENSE = Arm("dense")
Make = Callable[[Shrinker, Context], Method]


def importance(target: float, share: float, **options: object) -> Make:
    """Method 3, as in the paper: every step counts, a fifth of the epochs come first."""

    def make(shrinker: Shrinker, context: Context) -> Method:
        return NeuronImportance(
            shrinker,
            share,
            target,
            warmup=max(1, context.epochs // 5),
            seed=context.seed,
            verify=False,
            **{"observe_every": 1, **options},  # type: ignore[arg-type]
        )

    return make


def _pruned_neurons(share: float, step: float) -> tuple[Arm, ...]:
    """Method 3 at a share of the hidden units; the paper's control; the controls of all tables."""
    name = f"importance, {share:.0%}"
    return (
        Arm(name, importance(share, step)),
        Arm(f"signed importance, {share:.0%}", importance(share, step, signed=True)),
        Arm(f"random rounds, {share:.0%}", importance(share, step, criterion="random")),
        *controls(name),
    )


TASKS: tuple[Task, ...] = (
    Task(
        "MNIST, MLP 784-50-30-10",
        network="MLP 784-50-30-10",
        data="mnist",
        quick=Length(20),
        full=Length(60),
        arms=(
            DENSE,
            *(a for s in (0.3, 0.5, 0.68) for a in _pruned_neurons(s, 0.1)),
        ),
        note="Shares are of hidden units, a tenth of each layer's width a round.",
    ),
    Task(
        "MNIST, LeNet-5, units",
        network="LeNet-5",
        data="mnist",
        quick=Length(10),
        full=Length(40),
        arms=(
            DENSE,
            *(a for s in (0.3, 0.5, 0.68) for a in _pruned_neurons(s, 0.15)),
        ),
        note="Shares are of hidden units and channels, 15 % of each layer's width a round.",
    ),
    Task(
        "CIFAR-10 (JPEG), simple CNN",
        network="simple CNN",
        data="cifar10-jpeg",
        quick=Length(10, 20_000),
        full=Length(100),
        arms=(DENSE, *_pruned_neurons(0.41, 0.1)),
        metric="macs",
        rate=0.02,
        note="Two convolution blocks and three linear layers from 2048, as the paper describes its network.",
    ),
)
