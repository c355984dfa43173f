"""Trains a copy of a model, makes it smaller on the way, and returns it for use."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from fxprune.calibration.batches import Inputs, split
from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.process.random_state import random_state_kept
from fxprune.report import Comparison, compare, compare_latency
from fxprune.training.errors import TrainingError
from fxprune.training.history import History
from fxprune.training.shrinker import Change, Shrinker
from fxprune.training.smaller.data import BatchLoss, Data, check_loss
from fxprune.training.smaller.method import (
    Builder,
    Metric,
    Settings,
    TrainingMethod,
    build_method,
    find_builder,
)
from fxprune.training.smaller.own_class import into_own_class
from fxprune.training.smaller.progress import TrainingProgress
from fxprune.training.smaller.result import Smaller

EXAMPLES = {
    "optimizer": "optimizer=lambda parameters: torch.optim.AdamW(parameters, 1e-3)",
    "scheduler": "scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1000)",
}


def train_smaller(
    model: nn.Module,
    loader: Iterable[Any],
    method: str | Builder = "units+layers",
    keep: float = 0.5,
    metric: Metric = "latency",
    *,
    epochs: int,
    loss: BatchLoss | None = None,
    inputs: Inputs | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    validation: Iterable[Any] | None = None,
    progress: bool = True,
    seed: int = 0,
    **options: Any,
) -> Smaller:
    """Trains a copy of a model and makes it smaller while it trains, by a method of a paper or one of your own.

    The model stays as it is, bit by bit, and so do the global random generators. The copy trains in train mode,
    whatever the mode of the model; parameters without `requires_grad` stay as they are. The first 20 % of the epochs
    (at least one) leave the network alone; after 60 % it is decided what goes, and the rest trains what is left.

    - `layers` removes residual blocks (`BernoulliLayers`): `keep` is reached as nearly as whole blocks allow.
    - `units+layers` removes units and residual blocks (`ComplexityAware`): `keep` is reached closely.
    - `importance` removes the same share of the units of each layer (`NeuronImportance`): `keep` is reached to whole
      units; MACs stand for the latency.
    - `entropy` removes activation functions, so that layers can be fused (`EntropyGuided`): `keep` is the share of
      convolutions and linear layers that stay, where they can be fused, whatever the metric.

    Args:
        model: the network; also one that is trained already.
        loader: gives the batches of an epoch each time that it is iterated: pairs (x, y) of a classifier, or anything
            else with `loss`. Tensors in it are moved to the device of the model.
        method: a name from the table or of an entry point in the group `fxprune.methods`; or its builder, a function
            of a `Shrinker` and `Settings` that returns a `TrainingMethod`.
        keep: the share of the cost that is to stay, above 0 and below 1.
        metric: the cost: latency (of this machine, on the first batch), macs or params.
        epochs: 3 or more.
        loss: returns the mean loss `[]` of a module on a batch; called more than once in a step. None: cross-entropy.
        inputs: returns what goes into the network of a batch: a tensor or a tuple of positional inputs, or a dict of
            keyword inputs. None: batch[0]; of a dict all but "labels".
        optimizer: makes an optimizer of the parameters of the copy. None: AdamW at a rate of 1e-3 and a weight decay
            of 1e-2, which suits most networks; for convolutional networks from scratch, SGD with momentum is
            often better: `lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4)`.
        scheduler: makes a scheduler of the optimizer, which is stepped after every **step**. None: one cycle
            (Smith and Topin, arXiv 1708.07120) with the rate of the optimizer as its maximum.
        validation: like `loader`, preferably data that training does not see. It gives loss and accuracy of every
            epoch, and its first 8 batches decide about gates.
        progress: whether to show progress on stderr.
        seed: of all random choices.
        options: further options of the method's class.

    Returns:
        The smaller network, how it came about, and its sizes.

    Raises:
        OptionError: an argument cannot be used; nothing has been trained.
        TrainingError: the method cannot make this network smaller, or the loss is not a finite scalar; before training
            where the first batch shows it.
        CaptureError, VerifyError: see `Shrinker`.
    """
    name, builder = _builder(method)
    settings = Settings(keep, metric, epochs, seed, None, options)
    with random_state_kept():
        _seed(seed)
        network = _copy(model).train()
        data = Data.read(network, loader, validation, loss, inputs)
        check_loss(_copy(network), data.first, data.loss)
        settings = replace(settings, settle_on=data.settle_on())
        steps = data.train.count()
        shrinker = _shrinker(network, data, optimizer, scheduler, epochs * steps)
        start = shrinker.program
        controller = build_method(name, builder, shrinker, settings)
        with TrainingProgress(progress, epochs, steps) as shown:
            history, changes = _train(controller, shrinker, data, shown, epochs)
        program = controller.finish_training()
        trained = shrinker.program
        own, why_not = into_own_class(network, start, changes, trained, program, data.example)
        comparison = compare(start, program)
        kept = _kept(start, program, comparison, metric)
    remarks = (*start.remarks, *settings.remarks, *why_not)
    return Smaller(program, own, history, comparison, tuple(changes), remarks, kept, keep, metric)


def _train(
    controller: TrainingMethod,
    shrinker: Shrinker,
    data: Data,
    shown: TrainingProgress,
    epochs: int,
) -> tuple[History, list[Change]]:
    """All epochs; returns their rows and what was removed."""
    history, changes = History(), list[Change]()
    for _ in range(epochs):
        history.start_epoch()
        for batch in data.train:
            history.step(controller.step(data.loss_on(batch)))
            shrinker.scheduler.step()
            shown.step()
        removed = controller.end_epoch()
        changes += removed
        numbers = {**controller.numbers(), **data.judge(shrinker.module)}
        shown.end_epoch(history.end_epoch(shrinker.program, **numbers), removed)
    return history, changes


def _shrinker(
    network: nn.Module,
    data: Data,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
    scheduler: Callable[[Optimizer], LRScheduler] | None,
    steps: int,
) -> Shrinker:
    """Captures the network, and makes its optimizer and scheduler."""
    for name, given in (("optimizer", optimizer), ("scheduler", scheduler)):
        if given is not None and (
            isinstance(given, Optimizer | LRScheduler) or not callable(given)
        ):
            raise OptionError(
                f"{name} is a {type(given).__name__}",
                why="a copy of the model trains, whose parameters it does not know",
                do=f"pass a function that makes it, for example {EXAMPLES[name]}",
            )
    parameters = [p for p in network.parameters() if p.requires_grad]
    made = AdamW(parameters, 1e-3) if optimizer is None else optimizer(parameters)
    rates = [group["lr"] for group in made.param_groups]
    schedule = OneCycleLR(made, rates, steps) if scheduler is None else scheduler(made)
    args, kwargs = split(data.example)
    return Shrinker(network, made, args=args, kwargs=kwargs, scheduler=schedule)


def _kept(start: Program, program: Program, comparison: Comparison, metric: Metric) -> float:
    """The share of the cost that is left."""
    if metric == "latency":
        return compare_latency(start, program).ratio
    before, after = comparison.before.total, comparison.after.total
    return after.macs / before.macs if metric == "macs" else after.parameters / before.parameters


def _builder(method: str | Builder) -> tuple[str, Builder]:
    if isinstance(method, str):
        return method, find_builder(method)
    if not callable(method):
        raise OptionError(
            f"method is a {type(method).__name__}",
            do="pass a name, or (shrinker, settings) -> method",
        )
    return getattr(method, "__name__", type(method).__name__), method


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise TrainingError(
            f"{type(model).__name__} cannot be copied",
            why=f"{type(error).__name__}: {error}",
            do="let its attributes be copied by copy.deepcopy, or train with a Shrinker (docs/training.md)",
        ) from error


def _seed(seed: int) -> None:
    """Seeds every global generator."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (what users' code may draw from)
