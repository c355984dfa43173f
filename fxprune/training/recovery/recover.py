"""Recovers what a network has lost by pruning: it learns the outputs of the original."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

import torch
from tabulate import tabulate
from torch import nn
from torch.optim import AdamW

from fxprune.calibration import Calibration
from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.plan import Plan
from fxprune.process.random_state import random_state_kept
from fxprune.process.state import plain_modes
from fxprune.report import Curves
from fxprune.training.errors import TrainingError
from fxprune.training.recovery.distance import Distance, distance_named
from fxprune.training.recovery.drawn import curves_of, plot_points
from fxprune.training.recovery.features import Network, find_paths, kept_positions
from fxprune.training.recovery.loop import Course, Lesson, Outputs, Point

T = TypeVar("T", bound=nn.Module | Program)
MEASUREMENTS = 10  # over a course


@dataclass(frozen=True, eq=False)
class Recovered(Generic[T]):
    """A network that has recovered; prints as a table.

    Attributes:
        network: of the kind that was given, in eval mode.
        history: the mean loss of the steps, and the distance on the validation data.
    """

    network: T
    history: tuple[Point, ...] = field(repr=False)

    def __str__(self) -> str:
        names = {"step": "steps", "loss": "loss", "held": "held-out distance"}
        rows = [[getattr(p, name) for name in names] for p in self.history]
        used = [i for i, _ in enumerate(names) if any(row[i] is not None for row in rows)]
        table = [["" if row[i] is None else row[i] for i in used] for row in rows]
        return tabulate(table, [list(names.values())[i] for i in used], floatfmt=".4g")

    def curves(self) -> tuple[Curves, ...]:
        """Loss and distance over the steps, for a report: `outcome.report.with_curves(recovered)`."""
        return curves_of(self.history)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Plots loss and distance over the steps, PNG by default.

        Raises:
            OptionError: matplotlib is not installed.
        """
        plot_points(self.history, path)


@plain_modes()
@random_state_kept()
def recover(
    network: T,
    teacher: nn.Module | Program,
    data: Calibration | Iterable[object],
    steps: int,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: float = 0.1,
    distance: Distance | Outputs = "squared",
    temperature: float = 2.0,
    features: Sequence[str] = (),
    feature_weight: float = 1.0,
    plan: Plan | None = None,
    task_weight: float = 0.0,
    validation: Calibration | Iterable[object] | None = None,
    patience: int | None = 3,
    clip: float = 1.0,
    progress: bool = True,
    seed: int = 0,
) -> Recovered[T]:
    """Trains a copy of a smaller network to compute what its teacher does.

    The steps are AdamW's (arXiv 1711.05101), with a rate that rises linearly and falls by a cosine to 0. Both networks
    run in eval mode: dropout is off, and batch norms keep their statistics, which are gathered anew first. Labels are
    not needed. Network, teacher and random state stay as they are; parameters without `requires_grad` do not train.

    Args:
        network: the smaller network: a program, or the model that `fp.write_back` made.
        teacher: the original: `outcome.original`, or the model before pruning.
        data: batches of what the network is for, or an `fp.Calibration`. They are read again when they end.
        steps: of the optimizer, one batch each.
        lr: the highest rate.
        weight_decay: of AdamW.
        warmup: the share of the steps in which the rate rises.
        distance: of the outputs from the teacher's. "squared": the squared error of each output relative to its
            variance; "kl": the divergence of softmax classes at `temperature` (Hinton et al., arXiv 1503.02531); or a
            function (outputs, outputs of the teacher) -> `[]`.
        temperature: of "kl".
        features: globs of module paths, whose outputs are compared too (FitNets: Romero et al., arXiv 1412.6550). Where
            a module returns fewer channels than in the teacher, `plan` says which; without it, the module is left out.
        feature_weight: of the mean distance of the features.
        plan: `outcome.plan`, where the teacher is `outcome.original`.
        task_weight: of the loss of `data`, which then needs labels or a loss of its own.
        validation: like `data`; ten times the distance is measured on it, and the best state is returned.
        patience: measurements without improvement after which it ends; None: never.
        clip: the norm to which gradients are cut.
        progress: whether to show a bar on stderr.
        seed: of dropout and the like.

    Raises:
        OptionError: an argument cannot be used; nothing has been trained.
        TrainingError: nothing in the network trains, its outputs are not like the teacher's, or the loss is not finite.
        ScoreError: the data has no loss, and `task_weight` asks for it.
    """
    for name, value, good in (
        ("steps", steps, steps >= 1),
        ("lr", lr, lr > 0),
        ("warmup", warmup, 0 <= warmup < 1),
        ("clip", clip, clip > 0),
    ):
        if not good:
            raise OptionError(
                f"{name} is {value}", where=name, do="see the documentation of fp.recover"
            )
    torch.manual_seed(seed)
    student: T = copy_of(network)
    lesson = make_lesson(
        student,
        teacher,
        data,
        validation,
        distance if callable(distance) else distance_named(distance, temperature),
        features=features,
        feature_weight=feature_weight,
        plan=plan,
        task_weight=task_weight,
    )
    optimizer = AdamW(trained(student), lr, weight_decay=weight_decay)
    every = max(1, steps // MEASUREMENTS)
    course = Course(lesson, optimizer, steps, warmup, every, patience, clip, progress)
    course.run(student, steps)
    return Recovered(student, tuple(course.history))


def make_lesson(
    student: Network,
    teacher: Network,
    data: Calibration | Iterable[object],
    validation: Calibration | Iterable[object] | None,
    distance: Outputs,
    *,
    features: Sequence[str] = (),
    feature_weight: float = 1.0,
    plan: Plan | None = None,
    task_weight: float = 0.0,
) -> Lesson:
    """What is learned; the teacher is copied, in eval mode. For the arguments see `recover`."""
    if isinstance(features, str):
        features = (features,)
    own = copy_of(teacher)
    own.eval()
    paths = find_paths(student, own, features)
    return Lesson(
        teacher=own,
        data=Calibration.of(data),
        distance=distance,
        paths=tuple(paths),
        kept=kept_positions(own, plan, paths),
        feature_weight=feature_weight,
        task_weight=task_weight,
        validation=None if validation is None else Calibration.of(validation),
    )


def copy_of(network: T) -> T:
    """A copy with tensors of its own.

    Raises:
        OptionError: it is neither a model nor a program.
        TrainingError: the model cannot be copied.
    """
    if isinstance(network, Program):
        return cast(T, network.copy())
    if not isinstance(network, nn.Module):
        raise OptionError(
            f"a {type(network).__name__} cannot be trained",
            do="give a model, or a program such as outcome.program",
        )
    try:
        return copy.deepcopy(network)
    except Exception as error:  # code of the user's: anything may come
        raise TrainingError(
            f"{type(network).__name__} cannot be copied",
            why=f"{type(error).__name__}: {error}",
            do="let its attributes be copied by copy.deepcopy",
        ) from error


def trained(network: Network) -> list[nn.Parameter]:
    """The parameters that train.

    Raises:
        TrainingError: there are none.
    """
    module = network.module if isinstance(network, Program) else network
    found = [p for p in module.parameters() if p.requires_grad]
    if not found:
        raise TrainingError(
            "no parameter of the network trains",
            do="set requires_grad_() on those that are to train",
        )
    return found
