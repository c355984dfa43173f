"""What is trained, on what, for how long; and what is done to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from fxprune.training import Shrinker
from fxprune_passes.methods.method import Method


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Attributes:
        epochs: over the images.
        images: of training; all where None.
    """

    epochs: int
    images: int | None = None


@dataclass(frozen=True)
class Context:
    """What a method may want to know of its run.

    Attributes:
        steps: of an epoch.
        samples: training images.
        epochs: in all.
        seed: of the run.
        accuracy: of a module, on training images that are few enough for each round.
        loss: the same.
    """

    steps: int
    samples: int
    epochs: int
    seed: int
    accuracy: Callable[[nn.Module], float] = field(compare=False)
    loss: Callable[[nn.Module], float] = field(compare=False)


@dataclass(frozen=True)
class Arm:
    """What is done to a network in a run.

    Attributes:
        name: in the table.
        make: the method, over the network that trains; None: plain training.
        control: "random": units at random go in the middle of training; "magnitude": the smallest ones go
            behind it, and a fifth of the epochs more follow; "": neither.
        like: the arm whose final size a control takes.
    """

    name: str
    make: Callable[[Shrinker, Context], Method] | None = None
    control: Literal["", "random", "magnitude"] = ""
    like: str = ""


@dataclass(frozen=True)
class Task:
    """One table: a network, its data, and the arms that are compared.

    Attributes:
        name: heading of the table.
        network: see `networks.NETWORKS`.
        data: see `data.NAMES`.
        quick: how long on a CPU.
        full: how long in the paper, or as near as is sensible.
        arms: in the order of the table; a control stands behind the arm that it is like.
        prepare: pipeline that the network goes through first, as `insert-skips`.
        metric: what "the same size" is about.
        rate: learning rate of SGD with momentum 0.9, falling to 0 by a cosine.
        decay: weight decay.
        batch: images of a step.
        note: what a reader must know.
    """

    name: str
    network: str
    data: str
    quick: Length
    full: Length
    arms: tuple[Arm, ...]
    prepare: str = ""
    metric: Literal["params", "macs"] = "params"
    rate: float = 0.05
    decay: float = 1e-4
    batch: int = 128
    note: str = ""


def controls(like: str) -> tuple[Arm, Arm]:
    """Random pruning, and magnitude pruning behind training, to the size that an arm came to."""
    return (
        Arm(f"random, as {like}", control="random", like=like),
        Arm(f"magnitude, as {like}", control="magnitude", like=like),
    )
