"""One run: trains a network with what an arm does to it, and says what came of it."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

import fxprune as fp
from experiments import controls
from experiments.data import Data
from experiments.outcome import Row, blocks_of, describe
from experiments.placed import placed
from experiments.schedule import SCHEDULES
from experiments.start import model, start
from experiments.store import Peer
from experiments.task import Arm, Context, Length, Task
from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.training import History, Shrinker
from fxprune.training.history import size_of
from fxprune_passes.methods import EntropyGuided
from fxprune_passes.methods.method import Method

Tensor = torch.Tensor
# Seconds between two checkpoints of a run.
PAUSE = 120.0
# Of the example inputs, and so of latencies.
EXAMPLE = 64
# Held-out samples that a method may look at: images, or pieces of text.
LOOK = {4: 1_000, 2: 100}


class OutOfTimeError(Exception):
    """The run has stopped at a checkpoint."""


@dataclass(frozen=True)
class Run:
    """A cell of a table.

    Attributes:
        task: what is trained.
        arm: what is done to it.
        seed: of weights, order and chance.
        length: of training.
        running: folder for checkpoints; nothing is kept there behind a run.
        finished: folder for the networks that come out.
        peer: the run that a control is like.
        deadline: `time.time()` at which it stops, at the end of an epoch.
    """

    task: Task
    arm: Arm
    seed: int
    length: Length
    running: Path
    finished: Path
    peer: Peer | None = None
    deadline: float = math.inf

    def train(self, data: Data, device: str) -> Row:
        """Trains and measures; goes on where a checkpoint lies.

        Raises:
            OutOfTimeError: the deadline has come; the next call goes on.
        """
        data = data.limit(self.length.images).to(device)
        begin = start(self.task, self.arm, self.seed, data.example(EXAMPLE), device)
        loop = _Loop(self, begin, data)
        loop.train()
        row = describe(loop.method, begin, data, self.finished, final=self.task.final)
        shutil.rmtree(self.running, ignore_errors=True)
        history = loop.history.rows
        macs = [loop.macs, *(r.macs for r in history)]
        cuts = [i for i, (a, b) in enumerate(pairwise(macs), 1) if b != a]
        return {
            **row,
            "last_removal": cuts[-1] if cuts else 0,
            "blocks": [r.extra["blocks"] for r in history],
            "seconds": round(loop.clock, 1),
            "epochs": len(history),
            "curve": [r.accuracy for r in history],
            "rounds": loop.method.curve if isinstance(loop.method, EntropyGuided) else [],
            "numbers": history[-1].extra if history else {},
        }


class _Loop:
    """The training of one run."""

    def __init__(self, run: Run, begin: Program, data: Data) -> None:
        self.run, self.data, self.device = run, data, data.train.inputs.device
        task, arm = run.task, run.arm
        self.steps = len(data.train) // task.batch
        late = arm.control is not None and arm.control.kind == "magnitude after"
        self.extra = max(1, run.length.epochs // 5) if late else 0
        self.epochs = run.length.epochs + self.extra
        at = run.running / "at.json"
        place = json.loads(at.read_text()) if at.exists() else {}
        self.epoch: int = place.get("epoch", 0)
        self.clock: float = place.get("seconds", 0.0)
        program = self._program(begin)
        self.macs: int = place.get("macs", size_of(program).macs)
        gated = {f"{path}.theta" for path in gates(program)}
        trained = [p for n, p in program.module.named_parameters() if n not in gated]
        optimizer = self._optimizer(trained)
        self.shrinker = Shrinker(program, optimizer, scheduler=LambdaLR(optimizer, self._rate))
        self.history = History(run.running / "history.jsonl")
        began = self._now()
        self.method = Method(self.shrinker)
        if arm.make is not None:
            self.method = arm.make(self.shrinker, self._context())
        if self.epoch:
            state = torch.load(run.running / "state.pt", map_location=self.device)
            self.shrinker.load_state_dict(state["training"])
            self.method.load_state_dict(state["method"])
        # A run that was cut off has epochs behind its checkpoint, or none at all.
        self.history.rows[:] = self.history.rows[: self.epoch]
        self.clock += self._now() - began
        self.saved = time.perf_counter()

    def _optimizer(self, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
        task = self.run.task
        if task.optimizer == "AdamW":
            return torch.optim.AdamW(trained, task.rate, weight_decay=task.decay)
        return torch.optim.SGD(trained, task.rate, momentum=0.9, weight_decay=task.decay)

    def _program(self, begin: Program) -> Program:
        run = self.run
        if self.epoch:
            return placed(fp.load(run.running / "program"), self.device)
        if run.arm.control is None or run.peer is None:
            return begin
        fresh = model(run.task, run.arm, run.seed).to(self.device)
        return controls.prepare(run.arm.control, run.peer, begin, fresh, run.seed)

    def train(self) -> None:
        """All epochs, from where it stands."""
        while self.epoch < self.epochs:
            began = self._now()
            self.history.start_epoch()
            self.shrinker.module.train()
            seed = 1000 * self.run.seed + self.epoch
            for x, y in self.data.batches(self.run.task.batch, seed):
                self._step(x, y)
            self.epoch += 1
            self.method.end_epoch()
            self.clock += self._now() - began
            self._control()
            program = self.shrinker.program
            numbers = {**self.method.numbers(), "blocks": float(blocks_of(program))}
            self.history.end_epoch(program, **numbers)
            late = time.time() > self.run.deadline and self.epoch < self.epochs
            if late or time.perf_counter() - self.saved > PAUSE:
                self._save()
            if late:
                raise OutOfTimeError

    def _step(self, x: Tensor, y: Tensor) -> None:
        right: list[Tensor] = []

        def loss(module: nn.Module) -> Tensor:
            scores = module(x)
            right.append((scores.detach().argmax(-1) == y).sum())
            return cross_entropy(scores.flatten(0, -2), y.flatten())

        value = self.method.step(loss)
        self.shrinker.scheduler.step()
        self.history.step(value, correct=right[0], samples=y.numel())

    def _control(self) -> None:
        run = self.run
        if run.arm.control is not None and run.peer is not None:
            last = run.length.epochs
            controls.act(run.arm.control, run.peer, self.shrinker, self.epoch, last, run.seed)

    def _rate(self, step: int) -> float:
        """The task's schedule, once in each round; epochs behind it go from a tenth to 0."""
        plain = self.run.length.epochs * self.steps
        if step < plain:
            share = step / plain * self.run.arm.rounds
            return SCHEDULES[self.run.task.schedule](share % 1)
        return 0.1 * SCHEDULES["cosine"]((step - plain) / max(1, self.extra * self.steps))

    def _context(self) -> Context:
        held = self.data.held[: LOOK[self.data.held.inputs.dim()]]
        inputs, labels = self.data.scaled(held.inputs), held.labels

        def accuracy(module: nn.Module) -> float:
            with torch.no_grad():
                return float((module(inputs).argmax(-1) == labels).float().mean())

        def loss(module: nn.Module) -> Tensor:
            return cross_entropy(module(inputs).flatten(0, -2), labels.flatten())

        run, samples = self.run, len(self.data.train)
        epochs, resumed = run.length.epochs, self.epoch > 0
        return Context(self.steps, samples, epochs, run.seed, resumed, accuracy, loss)

    def _now(self) -> float:
        """Seconds of work: of the processor, which other processes do not add to; on an accelerator, of the clock."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def _save(self) -> None:
        """A checkpoint; the number of the epoch is written last."""
        folder = self.run.running
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "at.json").unlink(missing_ok=True)
        fp.save(self.shrinker.program, folder / "program")
        state = {"training": self.shrinker.state_dict(), "method": self.method.state_dict()}
        torch.save(state, folder / "state.pt")
        place = {"epoch": self.epoch, "seconds": self.clock, "macs": self.macs}
        part = folder / "at.part"
        part.write_text(json.dumps(place))
        part.replace(folder / "at.json")
        self.saved = time.perf_counter()
