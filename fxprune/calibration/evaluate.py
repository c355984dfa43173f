"""The loss of a network over batches, and the accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.calibration.batches import labels_of, logits_of
from fxprune.calibration.calibration import Calibration, device_of
from fxprune.graph.program import Program
from fxprune.process.random_state import random_state_kept
from fxprune.process.state import plain_modes


@dataclass(frozen=True)
class Evaluation:
    """What a network does on batches; prints as text.

    Attributes:
        loss: the mean loss of the batches.
        batches: the number of batches.
        accuracy: the share of correct classes; None where batches have no whole numbers as labels.
    """

    loss: float
    batches: int
    accuracy: float | None

    def __str__(self) -> str:
        correct = "" if self.accuracy is None else f", accuracy {self.accuracy:.2%}"
        return f"loss {self.loss:.4f}{correct}, {self.batches} batches"

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as a JSON object."""
        return asdict(self)


@plain_modes()
@random_state_kept()
def evaluate(network: nn.Module | Program, data: Calibration | Iterable[Any]) -> Evaluation:
    """The mean loss over batches in eval mode, and of a classifier the share of correct classes.

    Args:
        network: a model or a program; its mode is as before afterwards.
        data: batches with labels, or an `fp.Calibration` with a loss.

    Raises:
        OptionError: the batches cannot be read.
        ScoreError: nothing says what the loss is.
    """
    calibration = Calibration.of(data)
    module = network.module if isinstance(network, Program) else network
    modes = {path: m.training for path, m in module.named_modules()}
    losses, right, seen = list[float](), 0, 0
    module.eval()
    try:
        with torch.no_grad():
            for batch in calibration.on(device_of(module)):
                outputs = calibration.outputs(module, batch)
                losses.append(float(calibration.loss_of(outputs, batch)))
                correct = _correct(outputs, batch)
                right, seen = right + int(correct.sum()), seen + correct.numel()
    finally:
        module.train(modes[""])
        for path, child in module.named_modules():
            child.training = modes[path]
    return Evaluation(sum(losses) / len(losses), len(losses), right / seen if seen else None)


def _correct(outputs: Any, batch: Any) -> Tensor:
    """Which classes are correct; empty where there are none."""
    labels, logits = labels_of(batch), logits_of(outputs)
    if isinstance(labels, Tensor) and isinstance(logits, Tensor) and logits.dim() > 1:
        classes = (logits.argmax(axis) for axis in (1, -1))
        fitting = [c for c in classes if c.shape == labels.shape and not labels.is_floating_point()]
        if fitting:
            return fitting[0] == labels
    return torch.empty(0, dtype=torch.bool)
