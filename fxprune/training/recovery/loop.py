"""The steps in which a smaller network learns from its teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fxprune.calibration import Calibration
from fxprune.calibration.batches import to_device
from fxprune.calibration.calibration import device_of
from fxprune.calibration.recalibrate import update_statistics
from fxprune.process.progress import step_bar
from fxprune.training.errors import TrainingError
from fxprune.training.recovery.features import Kept, Network, Watched, in_common

STATISTICS = 64  # batches that statistics of batch norms are gathered from
Outputs = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Point:
    """One measurement while a network recovers.

    Attributes:
        step: the number of steps before it.
        loss: the mean loss of the steps since the last one; None before the first.
        held: the mean distance from the teacher on the validation data; None without.
    """

    step: int
    loss: float | None
    held: float | None


@dataclass(frozen=True)
class Lesson:
    """What is learned, and from whom.

    Attributes:
        teacher: the network whose outputs are wanted, in eval mode.
        data: the batches, which are read as often as is needed.
        distance: of outputs from those of the teacher.
        paths: modules whose outputs are compared too.
        kept: the positions that are left of what they return.
        feature_weight: of the mean distance of these outputs.
        task_weight: of the loss of the data.
        validation: batches on which the distance is measured; None: nothing is.
    """

    teacher: Network
    data: Calibration
    distance: Outputs
    paths: tuple[str, ...]
    kept: Kept
    feature_weight: float
    task_weight: float
    validation: Calibration | None

    def loss(self, student: Watched, batch: Any) -> Tensor:
        """What a step makes smaller, `[]`."""
        own = to_device(batch, device_of(student.module))
        found, inner = student.run(lambda m: self.data.outputs(m, own))
        wanted, outer = self._taught(self.data, batch)
        loss = self.distance(found, wanted)
        pairs = in_common(inner, outer, self.kept)
        if pairs:
            apart = [self.distance(a, b) for a, b in pairs.values()]
            loss = loss + self.feature_weight * torch.stack(apart).mean()
        if self.task_weight:
            loss = loss + self.task_weight * self.data.loss_of(found, own)
        return loss

    @torch.no_grad()
    def held(self, student: Watched) -> float | None:
        """The mean distance of the outputs from the teacher's on the validation data."""
        if self.validation is None:
            return None
        module, apart = student.module, []
        for batch in self.validation.on(None):
            own = to_device(batch, device_of(module))
            wanted, _ = self._taught(self.validation, batch)
            apart.append(float(self.distance(self.validation.outputs(module, own), wanted)))
        return sum(apart) / len(apart)

    @torch.no_grad()
    def _taught(self, data: Calibration, batch: Any) -> tuple[Any, dict[str, Tensor]]:
        teacher = Watched(self.teacher, self.paths)
        own = to_device(batch, device_of(teacher.module))
        return teacher.run(lambda m: data.outputs(m, own))


@dataclass
class Course:
    """Steps of an optimizer with one schedule, in one or several parts: between them the network may shrink.

    Attributes:
        lesson: what is learned.
        optimizer: over the parameters of the network.
        steps: of the whole course.
        warmup: the share of them in which the rate rises.
        every: how many steps lie between measurements.
        patience: measurements without improvement behind which a part ends; None: none does.
        clip: the norm to which gradients are cut.
        progress: whether a bar is shown on stderr.
    """

    lesson: Lesson
    optimizer: Optimizer
    steps: int
    warmup: float
    every: int
    patience: int | None
    clip: float
    progress: bool
    history: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rate = LambdaLR(self.optimizer, self._factor)
        self._batches = self._endless()
        self._step = 0

    def run(self, network: Network, steps: int) -> None:
        """Trains a network in place for so many steps, or until it gets no better; the best measured state stays.

        It runs in eval mode, with statistics of batch norms that are gathered anew first: those of a few batches
        would differ from step to step, and from what the network computes with afterwards.

        Raises:
            TrainingError: the loss is not finite.
        """
        student = Watched(network, self.lesson.paths)
        student.module.eval()
        best = _Best(student.module, self.patience)
        best.see(self._measure(student, []))
        update_statistics(student.module, self.lesson.data, STATISTICS)
        losses: list[float] = []
        with step_bar(self.progress) as bar:
            task = bar.add_task("recovering", total=steps)
            for step in range(1, steps + 1):
                losses.append(self._one(student))
                bar.advance(task)
                if step % self.every == 0 or step == steps:
                    held = self._measure(student, losses)
                    losses = []
                    bar.update(task, description=f"recovering, loss {self.history[-1].loss:.3g}")
                    if best.see(held):
                        break
        best.restore()

    def _one(self, student: Watched) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.lesson.loss(student, next(self._batches))
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"the loss is {loss.item()} after {self._step} steps",
                do="lower the rate (lr=), and check the data for NaN",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_([p for p in student.module.parameters() if p.requires_grad], self.clip)
        self.optimizer.step()
        self._rate.step()
        self._step += 1
        return float(loss.detach())

    def _measure(self, student: Watched, losses: list[float]) -> float | None:
        held = self.lesson.held(student)
        mean = sum(losses) / len(losses) if losses else None
        self.history.append(Point(self._step, mean, held))
        return held

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.lesson.data.on(None)

    def _factor(self, step: int) -> float:
        """The rate as a share of its maximum: a linear rise, then a half cosine down to 0."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1, (step - rise) / max(1, self.steps - rise))))


class _Best:
    """The state of a network at its best measurement."""

    def __init__(self, module: nn.Module, patience: int | None) -> None:
        self._module, self._patience = module, patience
        self._held: float | None = None
        self._state: dict[str, Any] | None = None
        self._since = 0

    def see(self, held: float | None) -> bool:
        """Takes note of a measurement; whether to stop."""
        if held is None:
            return False
        if self._held is None or held < self._held:
            self._held, self._since = held, 0
            self._state = copy.deepcopy(self._module.state_dict())
            return False
        self._since += 1
        return self._patience is not None and self._since >= self._patience

    def restore(self) -> None:
        """Goes back to the best state, where anything was measured."""
        if self._state is not None:
            self._module.load_state_dict(self._state)
