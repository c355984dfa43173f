"""What came of a run: accuracies, sizes, what was left undecided; its networks are kept."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import fxprune as fp
from experiments.data import Data, Part
from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.structure.blocks import find_blocks
from fxprune.training.history import size_of
from fxprune_passes.methods.gates.drawn_gates import DrawnGates
from fxprune_passes.methods.method import Method, for_use

Row = dict[str, Any]


def describe(method: Method, start: Program, data: Data, folder: Path, *, final: bool) -> Row:
    """Finishes a training and measures it.

    Args:
        method: behind its last epoch.
        start: the dense network.
        data: on its device.
        folder: `structure` in it becomes the network that trained, without gates; `final` the one for use.
        final: whether the test set is read.
    """
    undecided = count_undecided(method.shrinker.program)
    rounded = {"round_gates": True} if isinstance(method, DrawnGates) else {}
    end = method.finish_training(**rounded)
    plain = run_pipeline(method.settled(), "delete-gated | remove-observers").program
    fp.save(plain.train(), folder / "structure")
    fp.save(end, folder / "final")
    parts = {"train": data.train[:10_000], "held": data.held}
    parts |= {"test": data.test} if final else {}
    found: Row = {"undecided": undecided, "blocks_left": blocks_of(end)}
    for name, part in parts.items():
        found[name], found[f"{name}_loss"] = judge(end, data, part)
    dense = for_use(copy.deepcopy(start))
    return {**found, **asdict(size_of(end)), "dense": asdict(size_of(dense))}


def count_undecided(program: Program) -> int:
    """Gates that are neither at 0 nor at 1."""
    thetas = [g.theta.detach() for g in gates(program).values() if g.kind == "bernoulli"]
    return sum(int(((t > 0) & (t < 1)).sum()) for t in thetas)


def blocks_of(program: Program) -> int:
    """Number of residual blocks."""
    return len(find_blocks(program))


@torch.no_grad()
def judge(program: Program, data: Data, part: Part) -> tuple[float, float]:
    """Share of labels that are right, and mean loss in nats, in eval mode."""
    training = program.training
    program.eval()
    right, loss = 0, 0.0
    for at in range(0, len(part), 500):
        some = part[at : at + 500]
        scores, labels = program(data.scaled(some.inputs)).flatten(0, -2), some.labels.flatten()
        right += int((scores.argmax(-1) == labels).sum())
        loss += float(cross_entropy(scores, labels, reduction="sum"))
    program.train(training)
    return right / part.labels.numel(), loss / part.labels.numel()
