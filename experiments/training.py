"""One run: trains a network with what an arm does to it, and measures what came of it."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

import fxprune as fp
from experiments.data import Data
from experiments.networks import NETWORKS
from experiments.task import Arm, Context, Length, Task
from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.report.latency import compare_latency
from fxprune.training import History, Shrinker
from fxprune.training.history import size_of
from fxprune_passes.methods.method import Method, for_use

Tensor = torch.Tensor
Row = dict[str, Any]
# Seconds between two checkpoints of a run.
PAUSE = 120.0


@dataclass(frozen=True)
class Run:
    """A cell of a table.

    Attributes:
        task: what is trained.
        arm: what is done to it.
        seed: of weights, order and chance.
        length: of training.
        keep: share of the dense network's size that a control keeps.
        folder: for checkpoints; nothing is kept there behind a run.
    """

    task: Task
    arm: Arm
    seed: int
    length: Length
    keep: float
    folder: Path

    def train(self, data: Data, device: str) -> Row:
        """Trains and measures; goes on where a checkpoint lies."""
        held = data.limit(self.length.images)
        torch.manual_seed(self.seed)
        model = NETWORKS[self.task.network]().train()
        # Convolutions of few channels are a quarter faster so.
        model = model.to(device).to(memory_format=torch.channels_last)
        start = fp.capture(model, held.example(self.task.batch))
        if self.task.prepare:
            start = run_pipeline(start, self.task.prepare, seed=self.seed).program
        loop = _Loop(self, start, held)
        began = time.perf_counter()
        loop.train()
        seconds = time.perf_counter() - began
        row = self._row(loop, start, held, seconds)
        shutil.rmtree(self.folder, ignore_errors=True)
        return row

    def _row(self, loop: _Loop, start: Program, data: Data, seconds: float) -> Row:
        end, last = loop.method.finish_training(), loop.shrinker.program
        first = for_use(copy.deepcopy(start))
        before, after = size_of(first), size_of(end)
        return {
            "test": accuracy(end, data, data.test_images, data.test_labels),
            "train": accuracy(end, data, data.images[:10_000], data.labels[:10_000]),
            **asdict(after),
            "dense": asdict(before),
            "latency": compare_latency(first, end, rounds=31).ratio,
            "step": step_ratio(start, last, data, self.task.batch),
            "seconds": round(seconds, 1),
            "epochs": len(loop.history.rows),
            "curve": [r.accuracy for r in loop.history.rows],
            "numbers": loop.history.rows[-1].extra if loop.history.rows else {},
        }


class _Loop:
    """The training of one run."""

    def __init__(self, run: Run, start: Program, data: Data) -> None:
        self.run, self.data = run, data
        task, arm = run.task, run.arm
        self.steps = len(data.images) // task.batch
        self.extra = max(1, run.length.epochs // 5) if arm.control == "magnitude" else 0
        self.epochs = run.length.epochs + self.extra
        self.folder = run.folder
        at = self.folder / "at.json"
        self.epoch = json.loads(at.read_text())["epoch"] if at.exists() else 0
        program = fp.load(self.folder / "program") if self.epoch else start
        gated = {f"{path}.theta" for path in gates(program)}
        trained = [p for n, p in program.module.named_parameters() if n not in gated]
        optimizer = torch.optim.SGD(trained, task.rate, momentum=0.9, weight_decay=task.decay)
        self.shrinker = Shrinker(program, optimizer, scheduler=LambdaLR(optimizer, self._rate))
        self.history = History(self.folder / "history.jsonl")
        self.method = Method(self.shrinker)
        if arm.make is not None:
            self.method = arm.make(self.shrinker, self._context())
        if self.epoch:
            state = torch.load(self.folder / "state.pt")
            self.shrinker.load_state_dict(state["training"])
            self.method.load_state_dict(state["method"])
            self.history.rows[:] = self.history.rows[: self.epoch]
        self.saved = time.perf_counter()

    def train(self) -> None:
        """All epochs, from where it stands."""
        while self.epoch < self.epochs:
            self.history.start_epoch()
            self.shrinker.module.train()
            seed = 1000 * self.run.seed + self.epoch
            for x, y in self.data.batches(self.run.task.batch, seed):
                self._step(x, y)
            self.epoch += 1
            self._control()
            self.method.end_epoch()
            self.history.end_epoch(self.shrinker.program, **self.method.numbers())
            if time.perf_counter() - self.saved > PAUSE:
                self._save()

    def _step(self, x: Tensor, y: Tensor) -> None:
        right: list[Tensor] = []

        def loss(module: nn.Module) -> Tensor:
            scores = module(x)
            right.append((scores.detach().argmax(1) == y).sum())
            return cross_entropy(scores, y)

        value = self.method.step(loss)
        self.shrinker.scheduler.step()
        self.history.step(value, correct=right[0], samples=len(y))

    def _control(self) -> None:
        """Takes the units of a control away, once."""
        arm, epochs = self.run.arm, self.run.length.epochs
        when = {"random": max(1, epochs // 2), "magnitude": epochs}.get(arm.control)
        if self.epoch != when:
            return
        program = self.shrinker.program
        outcome = fp.prune(
            program,
            keep=self.run.keep,
            metric=self.run.task.metric,
            importance=arm.control,
            scope="global" if arm.control == "magnitude" else "group",
            seed=self.run.seed,
        )
        self.shrinker.apply(outcome.plan)

    def _rate(self, step: int) -> float:
        """A cosine to 0; the epochs behind magnitude pruning go from a tenth to 0."""
        plain = self.run.length.epochs * self.steps
        if step < plain:
            return 0.5 * (1 + math.cos(math.pi * step / plain))
        return 0.05 * (1 + math.cos(math.pi * (step - plain) / max(1, self.extra * self.steps)))

    def _context(self) -> Context:
        count = min(2000, len(self.data.images))
        labels = self.data.labels[:count]

        def scores(module: nn.Module) -> Tensor:
            with torch.no_grad():
                return module(self.data.scaled(self.data.images[:count]))  # type: ignore[no-any-return]

        return Context(
            self.steps,
            len(self.data.images),
            self.run.length.epochs,
            self.run.seed,
            lambda module: float((scores(module).argmax(1) == labels).float().mean()),
            lambda module: float(cross_entropy(scores(module), labels)),
        )

    def _save(self) -> None:
        """A checkpoint; the number of the epoch is written last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "at.json").unlink(missing_ok=True)
        fp.save(self.shrinker.program, self.folder / "program")
        state = {"training": self.shrinker.state_dict(), "method": self.method.state_dict()}
        torch.save(state, self.folder / "state.pt")
        part = self.folder / "at.part"
        part.write_text(json.dumps({"epoch": self.epoch}))
        part.replace(self.folder / "at.json")
        self.saved = time.perf_counter()


@torch.no_grad()
def accuracy(program: Program, data: Data, images: Tensor, labels: Tensor) -> float:
    """Share of images that are right, in eval mode."""
    training = program.training
    program.eval()
    right = 0
    for part, wanted in zip(torch.split(images, 500), torch.split(labels, 500), strict=True):
        right += int((program(data.scaled(part)).argmax(1) == wanted).sum())
    program.train(training)
    return right / len(images)


def step_ratio(before: Program, after: Program, data: Data, batch: int, rounds: int = 15) -> float:
    """Time of a forward and a backward of one network over that of another; the median of pairs."""
    x, y = data.example(batch), data.labels[:batch]

    def seconds(program: Program) -> float:
        program.module.zero_grad()
        began = time.perf_counter()
        cross_entropy(program.module(x), y).backward()  # type: ignore[no-untyped-call]
        if x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    modes = before.training, after.training
    before.train()
    after.train()
    pairs = [(seconds(before), seconds(after)) for _ in range(rounds + 2)][2:]
    before.train(modes[0])
    after.train(modes[1])
    return median(b / a for a, b in pairs)
