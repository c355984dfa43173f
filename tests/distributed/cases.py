"""What is trained by one process, by replicas and by shards, to the same weights; see test_engines.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import fxprune as fp
from fxprune.graph.gate import gates
from fxprune.testing.several import Engine, train_with
from fxprune.training import Shrinker
from fxprune_passes.methods import BernoulliLayers, ComplexityAware, EntropyGuided, NeuronImportance


def sgd(p: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3)


def adamw(p: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(p, 0.01, weight_decay=0.1)


def layers(estimator: str) -> Callable[[Shrinker], Any]:
    return lambda s: BernoulliLayers(s, 1000, -10.0, estimator=estimator, rate=0.05, verify=False)


def remove_units(shrinker: Shrinker, epoch: int) -> None:
    """Removes what leaves uneven shards, of two tensors and along both axes of their neighbours."""
    if epoch == 0:
        units = {"blocks.0.up.weight": (0, [1, 4, 5]), "stem.weight": (0, [2])}
        shrinker.apply(fp.plan(shrinker.program, units), verify=True)
    if epoch == 1:
        shrinker.apply(fp.plan(shrinker.program, {"blocks.1.up.weight": (0, [0])}))


def close_block(method: Any, epoch: int) -> None:
    if epoch == 0:
        method.gates["blocks.0.gate"].set(0.001)
    method.end_epoch()


def end_epoch(method: Any, epoch: int) -> None:
    method.end_epoch()


def go_back(shrinker: Shrinker, epoch: int) -> None:
    """Removes units, and returns to the network before that."""
    if epoch == 0:
        point = shrinker.point()
        remove_units(shrinker, 0)
        shrinker.go_back(point)


def soft_gates(shrinker: Shrinker) -> None:
    """Inserts gates that the optimizer trains."""
    shrinker.run("insert-gates{scope=inner kind=soft}")
    shrinker.optimizer.add_param_group(
        {"params": [g.theta for g in gates(shrinker.program).values()]}
    )


def cut_gated(shrinker: Shrinker, epoch: int) -> None:
    """Closes two unit gates, and deletes what they switch."""
    if epoch == 0:
        gate = gates(shrinker.program)["blocks.0.up.gate"]
        with torch.no_grad():
            gate.theta[[0, 3]] = 0
        shrinker.run("delete-gated")


CASES: dict[str, tuple[Callable[[Shrinker], Any], Any, Any]] = {
    "units, sgd": (lambda s: None, sgd, remove_units),
    "units, adamw": (lambda s: None, adamw, remove_units),
    "go back": (lambda s: None, sgd, go_back),
    "gates of the optimizer": (soft_gates, sgd, cut_gated),
    "bernoulli, two-pass": (layers("two-pass"), sgd, close_block),
    "bernoulli, score": (layers("score"), sgd, close_block),
    "bernoulli, trapezoid": (layers("trapezoid"), adamw, close_block),
    "complexity": (
        lambda s: ComplexityAware(s, 0.5, 0.5, 0.5, rate=0.05, verify=False),
        sgd,
        close_block,
    ),
    "importance": (
        lambda s: NeuronImportance(s, 0.3, 0.5, warmup=0, observe_every=1, verify=False),
        adamw,
        end_epoch,
    ),
    "entropy": (lambda s: EntropyGuided(s, 0.3, verify=False), sgd, end_epoch),
}
# What FSDP refuses is tested apart.
UNSHARDED = ("entropy",)
# What four processes run: the code is that of two, the parts are others.
FEW = {
    "ddp": ("units, adamw",),
    "fsdp": ("units, adamw", "gates of the optimizer", "importance"),
}


def names(engine: str, count: int) -> list[str]:
    """Returns the cases that an engine runs in a number of processes."""
    if count == 4:
        return list(FEW[engine])
    return [name for name in CASES if engine == "ddp" or name not in UNSHARDED]


def run_case(name: str, engine: Engine) -> dict[str, Any]:
    return train_with(CASES[name][0], engine, *CASES[name][1:])
