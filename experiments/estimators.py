"""How far estimates of d/dtheta are off, and what they cost, on a trained network with gates on its blocks.

python experiments/run.py --only "CIFAR-10 (JPEG) at 16x16, narrow ResNet-20" --arm dense --seeds 1
python experiments/estimators.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from statistics import median

import torch
from tabulate import tabulate
from torch.nn.functional import cross_entropy

import fxprune as fp
from benchmarks.commit import commit
from benchmarks.page import renew
from experiments.data import load
from experiments.page import FILE
from experiments.store import Store, name_of
from experiments.tables.cifar import NARROW
from fxprune.graph.gate import Gate, gates
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.process.random_state import random_state
from fxprune_passes.methods.gates.running_differences import RunningDifferences
from fxprune_passes.methods.gates.theta_gradients import Estimator, Step, ThetaGradients
from fxprune_passes.methods.gates.unchanged import unchanged
from fxprune_passes.methods.method import Loss

Tensor = torch.Tensor
Gates = Mapping[str, Gate]
BATCH = 128


class Study:
    """A network at fixed thetas, its data, and the differences that are to be estimated.

    Args:
        program: trained, without gates.
        batches: of data, without end.
    """

    def __init__(self, program: Program, batches: Iterator[Loss]) -> None:
        gated = run_pipeline(program, "insert-gates{scope=block kind=bernoulli}").program.train()
        self.program, self.batches, self.gates = gated, batches, gates(gated)
        self.generator = torch.Generator().manual_seed(0)
        self.known = ThetaGradients("random", self.generator)
        self.means = RunningDifferences()
        for gate in self.gates.values():
            gate.draws, gate.estimator = False, "straight-through"

    def set(self, theta: float) -> None:
        """Sets every gate."""
        for gate in self.gates.values():
            gate.set(theta)

    def draw(self) -> Tensor:
        """Draws every gate; returns the uniform numbers behind the draws `[gates]`."""
        uniform = torch.rand(len(self.gates), generator=self.generator)
        self._take(uniform)
        return uniform

    def _take(self, uniform: Tensor) -> None:
        for gate, one in zip(self.gates.values(), uniform, strict=True):
            gate.sample.copy_(one < gate.theta.detach())

    @torch.no_grad()
    def value(self, loss: Loss) -> Tensor:
        """The loss at the present samples; buffers stay."""
        with unchanged(self.program.module, random_state()):
            return loss(self.program.module)

    def differences(self, draws: int) -> Tensor:
        """E[J | xi_l = 1] - E[J | xi_l = 0] for each gate `[gates]`, the mean over so many draws and batches."""
        total = torch.zeros(len(self.gates))
        for _ in range(draws):
            loss = next(self.batches)
            self.draw()
            for i, gate in enumerate(self.gates.values()):
                old = gate.sample.clone()
                values = []
                for at in (1.0, 0.0):
                    gate.sample.fill_(at)
                    values.append(self.value(loss))
                gate.sample.copy_(old)
                total[i] += values[0] - values[1]
        return total / draws

    def step(self, estimate: Callable[[Study, Step, Tensor], Tensor]) -> tuple[Tensor, float]:
        """An estimate `[gates]` on a new batch, and the seconds of the whole step."""
        module, loss = self.program.module, next(self.batches)
        start = time.process_time()
        uniform = self.draw()
        self.known.begin(repeats=True)
        module.zero_grad()
        value = loss(module)
        value.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            found = estimate(self, Step(module, value.detach(), loss), uniform)
        return found, time.process_time() - start


def by(estimator: Estimator) -> Callable[[Study, Step, Tensor], Tensor]:
    """An estimator of the library; what a step says of a gate counts as often as it says."""

    def estimate(study: Study, step: Step, _: Tensor) -> Tensor:
        found = study.known.estimate(estimator, study.gates, step)
        return by_path(study, {p: one.times * one.difference for p, one in found.items()})

    return estimate


def by_path(study: Study, found: Mapping[str, Tensor]) -> Tensor:
    """One number for each gate `[gates]`, 0 where there is none."""
    return torch.tensor([float(found.get(path, 0.0)) for path in study.gates])


def controlled(study: Study, step: Step, uniform: Tensor) -> Tensor:
    """Two-pass with the trapezoid of the same step as its control variate: unbiased, whatever the trapezoid is."""
    slopes = by("trapezoid")(study, step, uniform)
    found = by("two-pass")(study, step, uniform)
    chosen = found != 0
    return slopes + torch.where(chosen, found - len(study.gates) * slopes, 0)


def meaned(study: Study, step: Step, _: Tensor) -> Tensor:
    """Two-pass with the running means of the gates as control variates: every gate moves in every step."""
    seen = study.known.estimate("two-pass", study.gates, step)
    found = study.means.controlled(seen, study.gates)
    study.means.update(seen)
    return by_path(study, {p: one.times * one.difference for p, one in found.items()})


def antithetic(study: Study, step: Step, uniform: Tensor) -> Tensor:
    """DisARM (Dong et al., arXiv 2006.10680): a second pass with u replaced by 1 - u, for all gates at once."""
    theta = torch.stack([gate.theta.detach() for gate in study.gates.values()])
    first, second = (uniform < theta).float(), (1 - uniform < theta).float()
    study._take(1 - uniform)
    other = study.value(step.loss)
    by_logit = (step.value - other) / 2 * (1 - 2 * second) * (first != second)
    return by_logit * torch.maximum(theta, 1 - theta) / (theta * (1 - theta))


ESTIMATORS: dict[str, Callable[[Study, Step, Tensor], Tensor]] = {
    "first-order": by("first-order"),
    "trapezoid": by("trapezoid"),
    "score": by("score"),
    "two-pass": by("two-pass"),
    "two-pass, trapezoid as control variate": controlled,
    "two-pass, running means as control variates": meaned,
    "antithetic pair (DisARM)": antithetic,
}


def table(study: Study, thetas: tuple[float, ...], steps: int, draws: int) -> str:
    """Bias and standard deviation of each estimator at each theta, and its variance at equal time."""
    lines = []
    for theta in thetas:
        study.set(theta)
        study.means = RunningDifferences()
        exact = study.differences(draws)
        found: dict[str, tuple[list[Tensor], list[float]]] = {n: ([], []) for n in ESTIMATORS}
        for _ in range(steps):
            for name, estimate in ESTIMATORS.items():
                values, seconds = study.step(estimate)
                found[name][0].append(values)
                found[name][1].append(seconds)
        spent = {name: median(seconds) for name, (_, seconds) in found.items()}
        cost = {n: float(torch.stack(v).var(0).mean()) * spent[n] for n, (v, _) in found.items()}
        for name, (every, _) in found.items():
            each = torch.stack(every)
            error = each.mean(0) - exact
            noise = (each.var(0) / steps).mean().sqrt()
            lines.append(
                (
                    f"{theta:g}",
                    name,
                    f"{exact.mean():+.3f}",
                    f"{each.mean():+.3f}",
                    f"{error.square().mean().sqrt():.3f} ({noise:.3f})",
                    f"{each.var(0).mean().sqrt():.3f}",
                    f"{spent[name] / spent['first-order']:.2f}",
                    f"{cost[name] / cost['two-pass']:.2f}",
                )
            )
    head = ("theta", "estimator", "exact", "mean", "error (of chance)", "deviation", "time")
    return tabulate(lines, (*head, "variance at equal time"), "github", disable_numparse=True)


def _loss(inputs: Tensor, labels: Tensor) -> Loss:
    return lambda module: cross_entropy(module(inputs), labels)


def main() -> None:
    """Writes the block of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Store(options.folder).finished(name_of(NARROW, NARROW.arms[0], 0))
    data = load(NARROW.data, None)

    def batches() -> Iterator[Loss]:
        for epoch in count():
            yield from (_loss(x, y) for x, y in data.batches(BATCH, epoch))

    study = Study(fp.load(folder / "structure"), batches())
    lines = table(study, (0.5, 0.9, 0.98), options.steps, options.draws)
    made = f"`python experiments/estimators.py`, torch {torch.__version__}, cpu, commit {commit()}."
    how = (
        f"{NARROW.name}, trained densely; {len(study.gates)} gates on blocks, all at theta, "
        f"{options.steps} steps of {BATCH} images each; exact: the mean over {options.draws} draws and batches."
    )
    renew(FILE, {"Estimators": f"{how} {made}\n\n{lines}"})
    print(lines)


if __name__ == "__main__":
    main()
