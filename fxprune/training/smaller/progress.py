"""Shows the progress of a training on stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from fxprune.process.progress import step_bar
from fxprune.training.history import Epoch
from fxprune.training.shrinker import Change


class TrainingProgress:
    """A bar over the steps of a training, a line for each change and for each epoch; a context manager.

    Args:
        shown: whether anything is shown.
        epochs: the epochs of the training.
        steps: the steps of an epoch.
    """

    def __init__(self, shown: bool, epochs: int, steps: int) -> None:
        self._bar = step_bar(shown)
        self._shown, self._epochs = shown, epochs
        self._task = self._bar.add_task("training", total=epochs * steps)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def step(self) -> None:
        """Moves the bar on by one step."""
        self._bar.advance(self._task)

    def end_epoch(self, row: Epoch, changes: list[Change]) -> None:
        """Prints what an epoch came to, and what was removed at its end."""
        if not self._shown:
            return
        facts = [f"epoch {row.epoch + 1}/{self._epochs}"]
        facts += [f"loss {row.loss:.4f}"] if row.loss is not None else []
        facts += [f"accuracy {row.accuracy:.2%}"] if row.accuracy is not None else []
        facts += [f"{row.parameters:,} parameters", f"{row.macs:,} MACs", f"{row.layers} layers"]
        self._bar.console.print(", ".join(facts), markup=False)
        for change in changes:
            self._bar.console.print(f"  {change}", markup=False)
