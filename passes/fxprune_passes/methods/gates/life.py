"""The life of gates: an untouched warm-up, epochs in which they are drawn and learn, and a settled end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxprune_passes.methods.method import check_options


@dataclass
class Life:
    """The epochs of gates, and the steps that they consist of.

    Attributes:
        start_after: the epochs of warm-up.
        settle_at: the epoch at whose end all gates are decided; None: never.
        epochs: the epochs of the training, if known.
        total_steps: the steps of the training, if known.
        epoch: the completed epochs.
        steps: the completed steps of all epochs.
        counted: the steps of the first epoch.
        settled: whether all gates are decided.
        last_removal: the epoch of the last removal; 0 if there was none.
    """

    start_after: int = 0
    settle_at: int | None = None
    epochs: int | None = None
    total_steps: int | None = None
    epoch: int = 0
    steps: int = 0
    counted: int = 0
    settled: bool = False
    last_removal: int = 0

    def __post_init__(self) -> None:
        at, total = self.settle_at, self.total_steps
        check_options(
            ("start_after", self.start_after, self.start_after >= 0, "0 or more epochs"),
            ("settle_at", at, at is None or at > self.start_after, "later than start_after"),
            ("epochs", self.epochs, self.epochs is None or self.epochs >= 1, "1 or more"),
            ("total_steps", total, total is None or total >= 1, "1 or more"),
        )

    @property
    def warming(self) -> bool:
        """Whether gates are still untouched."""
        return self.epoch < self.start_after and not self.settled

    @property
    def learning(self) -> bool:
        """Whether gates are drawn and learn."""
        return not self.warming and not self.settled

    @property
    def timed(self) -> bool:
        """Whether the steps of an epoch are known without counting."""
        return self.total_steps is not None and self.epochs is not None

    @property
    def epoch_steps(self) -> float:
        """The steps of an epoch: as they were given, else as many as the first epoch had."""
        if self.total_steps is not None and self.epochs is not None:
            return self.total_steps / self.epochs
        return self.counted

    @property
    def all_steps(self) -> float:
        """The steps of the whole training; of its first `settle_at` epochs, where `epochs` is not known."""
        return self.total_steps or (self.epochs or self.settle_at or 0) * self.epoch_steps

    @property
    def progress(self) -> float:
        """The part of the learning phase that is over, 0 to 1."""
        assert self.settle_at is not None
        first, last = self.start_after * self.epoch_steps, self.settle_at * self.epoch_steps
        return min(1.0, max(0.0, (self.steps - first) / max(1.0, last - first)))

    def end_epoch(self) -> None:
        """Counts an epoch."""
        self.epoch += 1
        self.counted = self.counted or self.steps

    def state_dict(self) -> dict[str, Any]:
        """What changes during training."""
        names = ("epoch", "steps", "counted", "settled", "last_removal")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)
