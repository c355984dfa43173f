"""What a training-time method costs before anything is removed: its step in units of plain training's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from benchmarks.conftest import Compare
from experiments.networks import resnet_cifar
from fxprune_passes.methods import BernoulliLayers, ComplexityAware, EntropyGuided
from fxprune_passes.methods.method import Method
from fxprune_passes.methods.neuron_importance import NeuronImportance

BATCH, ROUNDS = 64, 20
LIMIT, TWO_PASS = 1.10, 1.60

Make = Callable[[fp.training.Shrinker], Method]
layers = partial(BernoulliLayers, samples=50_000, log_g=-500.0)
METHODS: dict[str, tuple[Make, float]] = {
    "layers, two-pass": (partial(layers, estimator="two-pass"), TWO_PASS),
    "layers, score": (partial(layers, estimator="score"), LIMIT),
    "layers, first-order": (partial(layers, estimator="first-order"), LIMIT),
    "units by cost": (partial(ComplexityAware.preset, "cifar10-resnet56-units"), LIMIT),
    "units and layers by cost": (partial(ComplexityAware.preset, "cifar10-resnet56"), LIMIT),
    "weights by entropy, every step": (EntropyGuided, LIMIT),
    "weights by entropy, every 10th step": (partial(EntropyGuided, observe_every=10), LIMIT),
    # One step in 32 counts, and the mean of all is to be at most the limit.
    "units by importance, a step that counts": (
        partial(NeuronImportance, warmup=0, observe_every=1),
        1 + 32 * (LIMIT - 1),
    ),
    "units by importance, other steps": (NeuronImportance, LIMIT),
}


def new_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = resnet_cifar(20).train()
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)


@pytest.mark.benchmark(group="Training-time methods")
@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str, compare: Compare) -> None:
    images, classes = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    make, at_most = METHODS[name]
    model, optimizer = new_model()
    method = make(fp.training.Shrinker(*new_model(), args=images))

    def loss(module: nn.Module) -> torch.Tensor:
        return cross_entropy(module(images), classes)

    def plain() -> None:
        optimizer.zero_grad()
        loss(model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    compare(plain, lambda _: method.step(loss), ROUNDS, at_most)
