"""What is trained, on what, for how long; and what is done to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from experiments.targets import Target
from fxprune.training import Shrinker
from fxprune_passes.methods.method import Method

Kind = Literal["scratch", "blocks", "random", "magnitude", "magnitude after", "uniform"]
Measure = Literal["macs", "params", "latency"]


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
        resumed: whether it goes on from a checkpoint: gates that are gone must not come back.
        accuracy: of a module, on samples that are held out of training, so few that a round can afford it.
        loss: the same `[]`, with gradients.
    """

    steps: int
    samples: int
    epochs: int
    seed: int
    resumed: bool
    accuracy: Callable[[nn.Module], float] = field(compare=False)
    loss: Callable[[nn.Module], Tensor] = field(compare=False)


@dataclass(frozen=True)
class Control:
    """What another arm is compared with: the same budget, spent in another way.

    Attributes:
        kind: what is done. `scratch`: the arm's final structure is trained from new weights. `blocks`: as many
            blocks as the arm's go in the same epochs, chosen at random; or, at equal latency, so many in the epoch of
            the arm's last removal that the network is no slower. `random` and `magnitude`: units go, all in
            the epoch of the arm's last removal, of each group the same share or the smallest of all. `magnitude
            after`: the same behind training, and a fifth of the epochs more follow. `uniform`: the dense network
            with all widths scaled, from new weights.
        like: name of the arm.
        equal: what the two networks have in common.
    """

    kind: Kind
    like: str
    equal: Measure = "macs"

    def __str__(self) -> str:
        plain = self.kind == "scratch" or (self.kind == "blocks" and self.equal != "latency")
        same = "" if plain else f" at its {WORDS[self.equal]}"
        return f"{NAMES[self.kind]}{same}, as {self.like}"


WORDS: dict[Measure, str] = {"macs": "MACs", "params": "parameters", "latency": "latency"}
NAMES: dict[Kind, str] = {
    "scratch": "its structure from scratch",
    "blocks": "random blocks",
    "random": "random units",
    "magnitude": "magnitude",
    "magnitude after": "magnitude behind training",
    "uniform": "uniform width",
}


@dataclass(frozen=True)
class Arm:
    """What is done to a network in a run.

    Attributes:
        name: in the table.
        make: the method, over the network that trains; None: plain training.
        control: what it is a control of, and how.
        network: instead of the task's, see `networks.NETWORKS`.
        rounds: how often the schedule of the rate runs, one time after the other: EASIER retrains with it each round.
    """

    name: str
    make: Callable[[Shrinker, Context], Method] | None = None
    control: Control | None = None
    network: str = ""
    rounds: int = 1


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
        rate: learning rate of SGD with momentum 0.9; of a one-cycle schedule its peak.
        schedule: of the rate: a cosine to 0, or one cycle (Smith and Topin, arXiv 1708.07120).
        optimizer: SGD with momentum 0.9, or AdamW.
        decay: weight decay.
        batch: samples of a step.
        seeds: of the runs.
        final: whether the test set is read. A task that prices are chosen in reads the validation set alone.
        claim: of the papers.
        targets: what the rows are held to.
        note: what a reader must know.
        published: accuracies in % that a paper gives, by the number of activations that are gone.
    """

    name: str
    network: str
    data: str
    quick: Length
    full: Length
    arms: tuple[Arm, ...]
    prepare: str = ""
    rate: float = 0.05
    schedule: Literal["cosine", "one-cycle"] = "cosine"
    optimizer: Literal["SGD", "AdamW"] = "SGD"
    decay: float = 1e-4
    batch: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    final: bool = True
    claim: str = ""
    targets: tuple[Target, ...] = ()
    note: str = ""
    published: dict[int, float] = field(default_factory=dict)

    def regime(self, length: Length) -> dict[str, Any]:
        """How its runs are trained; a row of another regime does not count."""
        names = ("network", "data", "prepare", "rate", "schedule", "optimizer", "decay", "batch")
        trained = {name: getattr(self, name) for name in names}
        return {**trained, "epochs": length.epochs, "samples": length.images, "final": self.final}


def controls(like: str, *wanted: Kind | tuple[Kind, Measure]) -> tuple[Arm, ...]:
    """Controls of an arm, each with what is equal (MACs where nothing is said)."""
    found = [Control(w, like) if isinstance(w, str) else Control(w[0], like, w[1]) for w in wanted]
    return tuple(Arm(str(control), control=control) for control in found)
