"""Callbacks for trainers of other libraries; no such library is imported before its callback is requested."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.pipeline.run import Steps
from fxprune.plan import Plan
from fxprune.training.errors import TrainingError
from fxprune.training.shrinker import Change, Shrinker

Decide = Callable[[Program, int], Plan | Steps | None]


class EpochShrinker:
    """Shrinks the network inside a trainer's model at the end of epochs; the base of the callbacks.

    Args:
        program: the network; the trainer's model must hold `program.module`.
        decide: called with the program and the epoch number; returns a plan, a pipeline, or None to do nothing.
        attribute: the dotted path of the network inside the trainer's model.

    Attributes:
        shrinker: the `Shrinker`, from the end of the first epoch on.
    """

    def __init__(self, program: Program, decide: Decide, attribute: str = "network") -> None:
        self._program, self._decide, self._attribute = program, decide, attribute
        self.shrinker: Shrinker | None = None

    def epoch_end(
        self, model: nn.Module, optimizer: Any, scheduler: Any, epoch: int
    ) -> Change | None:
        """Asks `decide`, applies its answer, and puts the smaller network into the trainer's model.

        Args:
            model: the trainer's model.
            optimizer: a torch optimizer, or a wrapper that holds one as its `optimizer`.
            scheduler: the learning-rate scheduler, or None.
            epoch: the number of the epoch that ended.

        Returns:
            What changed, or None if nothing was to be done.

        Raises:
            TrainingError: the model is wrapped, or holds another network; nothing has changed.
        """
        if isinstance(model, DistributedDataParallel):
            raise TrainingError(
                "the trainer's model is wrapped in DDP",
                why="after a shrinking, the trainer would have to wrap the model again",
                do="train in one process, or write your own loop with fp.training.rewrap(shrinker, ddp)",
            )
        path, _, name = self._attribute.rpartition(".")
        owner = model.get_submodule(path)
        if self.shrinker is None:
            plain = getattr(optimizer, "optimizer", optimizer)
            self.shrinker = Shrinker(self._program, plain, scheduler=scheduler)
        shrinker = self.shrinker
        if getattr(owner, name, None) is not shrinker.module:
            raise TrainingError(
                "the trainer's model holds another network",
                where=self._attribute,
                do="store program.module in the model, and pass its place as attribute=...",
            )
        decided = self._decide(shrinker.program, epoch)
        if decided is None:
            return None
        change = shrinker.apply(decided) if isinstance(decided, Plan) else shrinker.run(decided)
        setattr(owner, name, shrinker.module)
        return change


def lightning_callback(program: Program, decide: Decide, attribute: str = "network") -> Any:
    """Returns a Lightning callback that shrinks the network after training epochs; see `EpochShrinker`.

    Raises:
        OptionError: Lightning is not installed.
    """
    base: Any = _base("lightning.pytorch.callbacks", "Callback", "lightning")

    class ShrinkCallback(EpochShrinker, base):  # type: ignore[misc]
        """Shrinks the network after training epochs."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if len(trainer.optimizers) != 1:
                raise TrainingError(
                    f"{len(trainer.optimizers)} optimizers",
                    do="write your own loop, and shrink with the optimizer of the network",
                )
            schedules = [c.scheduler for c in trainer.lr_scheduler_configs]
            self.epoch_end(
                pl_module,
                trainer.optimizers[0],
                schedules[0] if schedules else None,
                trainer.current_epoch,
            )

    return ShrinkCallback(program, decide, attribute)


def trainer_callback(program: Program, decide: Decide, attribute: str = "network") -> Any:
    """Returns a callback for transformers' Trainer that shrinks the network after epochs; see `EpochShrinker`.

    Raises:
        OptionError: transformers is not installed.
    """
    base: Any = _base("transformers", "TrainerCallback", "transformers")

    class ShrinkCallback(EpochShrinker, base):  # type: ignore[misc]
        """Shrinks the network after epochs."""

        def on_epoch_end(
            self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any,
            lr_scheduler: Any = None, **_: Any,
        ) -> None:  # fmt: skip
            self.epoch_end(model, optimizer, lr_scheduler, round(state.epoch) - 1)

    return ShrinkCallback(program, decide, attribute)


def _base(module: str, name: str, package: str) -> Any:
    """Returns the class from which callbacks of another library inherit."""
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise OptionError(f"{package} is not installed", do=f"pip install {package}") from error
