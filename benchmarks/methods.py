"""What a training-time method costs beside plain training, before anything is removed, on ResNet-20."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from benchmarks.bench import RATIO_HEAD, Row, alternate, markdown, ratio_cells
from experiments.networks import resnet_cifar
from fxprune_passes.methods import BernoulliLayers, ComplexityAware, EntropyGuided
from fxprune_passes.methods.method import Method
from fxprune_passes.methods.neuron_importance import NeuronImportance

THREADS = 1
ALONE = False
BATCH, ROUNDS = 64, 30
LIMIT, TWO_PASS = 1.10, 1.60

Tensor = torch.Tensor
Step = Callable[[], Any]
Make = Callable[[fp.training.Shrinker], Method]


def _layers(estimator: str) -> Make:
    return lambda shrinker: BernoulliLayers(shrinker, 50_000, -500.0, estimator=estimator)


METHODS: dict[str, tuple[Make, float]] = {
    "layers, two-pass": (_layers("two-pass"), TWO_PASS),
    "layers, score": (_layers("score"), LIMIT),
    "layers, first-order": (_layers("first-order"), LIMIT),
    "units by cost": (lambda s: ComplexityAware.preset("cifar10-resnet56-units", s), LIMIT),
    "units and layers by cost": (lambda s: ComplexityAware.preset("cifar10-resnet56", s), LIMIT),
    "weights by entropy, every step": (EntropyGuided, LIMIT),
    "weights by entropy, every 10th step": (lambda s: EntropyGuided(s, observe_every=10), LIMIT),
    # One step in 32 counts, and the mean of all is to be at most the limit.
    "units by importance, a step that counts": (
        lambda s: NeuronImportance(s, warmup=0, observe_every=1),
        1 + 32 * (LIMIT - 1),
    ),
    "units by importance, other steps": (NeuronImportance, LIMIT),
}


def cases() -> list[str]:
    """One for each method."""
    return list(METHODS)


def measure(case: str) -> Row:
    """Steps of plain training and of a method, alternating; the median of the ratio of each pair."""
    images, classes = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def loss(module: nn.Module) -> Tensor:
        return cross_entropy(module(images), classes)

    make, limit = METHODS[case]
    found = alternate(_plain(loss), _with_method(make, images, loss), ROUNDS)
    return {"limit": limit, **found}


def _model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = resnet_cifar(20).train()
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)


def _plain(loss: Callable[[nn.Module], Tensor]) -> Step:
    model, optimizer = _model()

    def step() -> None:
        optimizer.zero_grad()
        loss(model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _with_method(make: Make, example: Tensor, loss: Callable[[nn.Module], Tensor]) -> Step:
    model, optimizer = _model()
    method = make(fp.training.Shrinker(model, optimizer, args=example))
    return lambda: method.step(loss)


def render(rows: Sequence[Row]) -> str:
    """The section of the page."""
    head = ["method", "plain, ms", "with it, ms", *RATIO_HEAD]
    lines = [
        [
            r["case"],
            f"{1e3 * r['first_s']:.0f}",
            f"{1e3 * r['second_s']:.0f}",
            *ratio_cells(r),
        ]
        for r in rows
        if "failure" not in r
    ]
    return (
        "## Training-time methods\n\n"
        f"A step of training of ResNet-20 (32x32, batch {BATCH}, SGD with momentum) with a method that has removed "
        "nothing yet, and of the plain network, alternating in one process.\n\n"
        + markdown(head, lines)
    )
