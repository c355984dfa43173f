"""What `train_smaller` asks of a method, and how it finds one by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import nn

from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.plugins import find_entry, load_plugin
from fxprune.remark import Remark
from fxprune.training.shrinker import Change, Shrinker

GROUP = "fxprune.methods"  # entry points of methods: name -> package.module:builder
Metric = Literal["latency", "macs", "params"]
Loss = Callable[[nn.Module], torch.Tensor]
# An epoch to warm up, one at whose end the method decides, and one to train what is left.
LEAST_EPOCHS = 3
WARM_UP, DECIDED = 0.2, 0.6


class TrainingMethod(Protocol):
    """A controller beside a training loop: it looks at the steps and shrinks the network between epochs.

    `fxprune_passes.methods.method.Method` is a base class that has all of this.
    """

    def step(self, loss: Loss) -> torch.Tensor:
        """Runs one training step with the shrinker's optimizer; returns the loss `[]`, detached.

        Args:
            loss: returns the loss `[]` of the batch for the module that it is given; may be called repeatedly.
        """

    def end_epoch(self) -> list[Change]:
        """Removes what is dispensable; returns every change since the last call, possibly none."""

    def finish_training(self) -> Program:
        """Returns a copy of the network for use, in eval mode."""

    def numbers(self) -> dict[str, float]:
        """Returns numbers to report for an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that is needed to go on later, besides those of the program and the shrinker."""


@dataclass(frozen=True)
class Settings:
    """What the user of `train_smaller` wishes; a builder makes a method of it.

    Attributes:
        keep: the share of the cost that is to stay, above 0 and below 1.
        metric: the cost: latency, macs or params.
        epochs: the epochs of the training, 3 or more.
        seed: of random choices.
        settle_on: the mean loss of a module on validation data `[]`; None without such data.
        options: further options of the method, by name.
        remarks: a builder adds what it can only approximate.
    """

    keep: float
    metric: Metric
    epochs: int
    seed: int = 0
    settle_on: Loss | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, value, good, must in (
            ("keep", self.keep, 0 < self.keep < 1, "above 0 and below 1: at 1 nothing goes"),
            ("metric", self.metric, self.metric in get_args(Metric), "latency, macs or params"),
            (
                "epochs",
                self.epochs,
                self.epochs >= LEAST_EPOCHS,
                f"{LEAST_EPOCHS} or more: some to warm up, some to decide, some to train what is left",
            ),
        ):
            if not good:
                raise OptionError(f"{name} is {value}", do=f"{name} must be {must}")

    @property
    def warm_up(self) -> int:
        """The epochs in which a method leaves the network alone: 20 % of all."""
        return max(1, round(WARM_UP * self.epochs))

    @property
    def decided(self) -> int:
        """The epoch (the first is 1) at whose end a method has decided: after 60 % of all."""
        return max(self.warm_up + 1, round(DECIDED * self.epochs))


Builder = Callable[[Shrinker, Settings], TrainingMethod]


def find_builder(name: str) -> Builder:
    """The builder of a method, from the entry points of all installed packages.

    Raises:
        OptionError: no package or more than one has a method of that name, or it cannot be imported.
    """
    entry = find_entry(
        GROUP,
        name,
        "method",
        do=f"declare it as an entry point of the group {GROUP} and reinstall that package, or pass the builder itself",
        choose="pass the builder itself: method=builder",
    )
    found = load_plugin(entry)
    if not callable(found):
        raise OptionError(
            f"the entry point {entry.name!r} names no builder of a method",
            where=entry.value,
            do="let it name a function (shrinker, settings) -> method",
        )
    builder: Builder = found
    return builder


def build_method(
    name: str, builder: Builder, shrinker: Shrinker, settings: Settings
) -> TrainingMethod:
    """The method beside a shrinker.

    Raises:
        OptionError: the method has no such options.
        TrainingError: it cannot make this network smaller.
    """
    try:
        return builder(shrinker, settings)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error) or not settings.options:
            raise
        raise OptionError(
            f"the method {name} does not have all of these options",
            where=", ".join(settings.options),
            why=str(error),
            do="see docs/methods for the options of each",
        ) from error
