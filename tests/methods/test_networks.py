"""Every method on every kind of network, each captured once and copied for each test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.structure.blocks import find_blocks
from fxprune.training import Shrinker, TrainingError
from fxprune_passes.methods import BernoulliLayers, ComplexityAware, EntropyGuided, NeuronImportance
from fxprune_passes.methods.method import Method

Tensor = torch.Tensor
Y = torch.tensor([0, 1])


def mlp() -> nn.Module:
    layers = [x for _ in range(3) for x in (nn.Linear(8, 8), nn.ReLU())]
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), *layers, nn.Linear(8, 3))


def resnet() -> nn.Module:
    block = pytest.importorskip("torchvision.models.resnet").BasicBlock
    down = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(block(8, 8), block(8, 12, 2, down)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)),
    )


def resnet18() -> nn.Module:
    found: nn.Module = pytest.importorskip("torchvision.models").resnet18(num_classes=3)
    return found


def mobilenet() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    found: nn.Module = models.MobileNetV2(3, 0.25, [[1, 16, 1, 1], [4, 16, 2, 2]])
    return found


def vit() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    found: nn.Module = models.VisionTransformer(8, 4, 1, 2, 8, 12, dropout=0.1, num_classes=3)
    return found


def swin() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    found: nn.Module = models.SwinTransformer(
        [4, 4], 8, [2, 2], [2, 2], [2, 2], num_classes=3, stochastic_depth_prob=0.0
    )
    return found


class Logits(nn.Module):
    """A language model that gives the numbers behind its last token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.model(tokens, use_cache=False).logits[:, -1]
        return found


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    return Logits(transformers.LlamaForCausalLM(config))


@dataclass(frozen=True)
class Network:
    """How to make it, and what is in it.

    Attributes:
        make: gives the module.
        shape: of the input; two numbers are tokens.
        blocks: residual blocks.
        observed: activations that entropy is counted of, and the weights before them.
        unranked: groups of units that have no rank.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    blocks: int
    observed: tuple[int, int]
    unranked: int
    slow: bool = False

    def input(self) -> Tensor:
        tokens = self.make is llama
        return torch.randint(16, self.shape) if tokens else torch.randn(self.shape)


NETWORKS = {
    "mlp": Network(mlp, (2, 5), 0, (4, 4), 0),
    "resnet": Network(resnet, (2, 3, 8, 8), 2, (5, 6), 0),
    "mobilenet": Network(mobilenet, (2, 3, 16, 16), 2, (7, 7), 1),
    "vit": Network(vit, (2, 3, 8, 8), 2, (1, 1), 3),
    "llama": Network(llama, (2, 5), 4, (2, 2), 6),
    "resnet18": Network(resnet18, (2, 3, 32, 32), 8, (17, 20), 0, slow=True),
    "swin": Network(swin, (2, 3, 32, 32), 8, (4, 4), 10, slow=True),
}
each = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if w.slow else ()) for n, w in NETWORKS.items()]
)


@cache
def captured(name: str) -> Program:
    torch.manual_seed(0)
    return fp.capture(NETWORKS[name].make().train(), NETWORKS[name].input())


def start(name: str) -> tuple[Shrinker, Callable[[nn.Module], Tensor]]:
    program = copy.deepcopy(captured(name))
    shrinker = Shrinker(program, torch.optim.AdamW(program.module.parameters(), 1e-3))
    torch.manual_seed(1)
    x = NETWORKS[name].input()
    return shrinker, lambda module: cross_entropy(module(x), Y)


def check_use(method: Method, name: str) -> None:
    """The network for use computes what the one that training came to does."""
    end = method.settled().eval()
    x = NETWORKS[name].input()
    torch.testing.assert_close(method.finish_training()(x), end(x), rtol=1e-3, atol=1e-4)


@each
def test_layers_by_gates(name: str) -> None:
    shrinker, loss = start(name)
    blocks = NETWORKS[name].blocks
    assert len(find_blocks(shrinker.program)) == blocks
    if not blocks:
        with pytest.raises(TrainingError, match="insert-skips"):
            BernoulliLayers(shrinker, 1000, -1.0)
        return
    method = BernoulliLayers(shrinker, 1000, -1.0, rate=1e-9)
    assert len(method.gates) == blocks
    method.step(loss)
    next(iter(method.gates.values())).set(0.001)
    (change,) = method.end_epoch()
    assert change.left
    assert method.numbers()["blocks"] == blocks - 1
    assert method.step(loss).isfinite()


@each
def test_units_and_layers_by_cost(name: str) -> None:
    shrinker, loss = start(name)
    blocks = NETWORKS[name].blocks
    method = ComplexityAware(shrinker, 0.1, 0.5 if blocks else 0, 0.5, rate=1e-9)
    method.step(loss)
    for gate in method.gates.values():
        gate.set(1.0)
        if gate.theta.dim() and len(gate.theta) > 1:
            gate.theta.data[0] = 0.001
    if blocks:
        [gate for gate in method.gates.values() if not gate.theta.dim()][-1].set(0.001)
    assert method.end_epoch()
    after = method.numbers()
    assert after["macs_share"] == after["expected_macs"] < 1
    assert after["expected_params"] == after["params_share"] < 1
    assert after["blocks"] == max(0, blocks - 1)
    assert method.step(loss).isfinite()


@each
def test_units_by_importance(name: str) -> None:
    shrinker, loss = start(name)
    method = NeuronImportance(shrinker, 0.5, 0.5, warmup=0)
    assert len(method.left) == NETWORKS[name].unranked
    method.step(loss)
    assert method.end_epoch()
    assert method.done
    assert method.numbers()["gone"] == pytest.approx(0.5)
    assert method.step(loss).isfinite()
    check_use(method, name)


@each
def test_weights_by_entropy(name: str) -> None:
    shrinker, loss = start(name)
    method = EntropyGuided(shrinker, 0.25, most=0.9)
    layers = method.layers()
    assert (len(layers), sum(len(la.weights) for la in layers)) == NETWORKS[name].observed
    method.step(loss)
    method.end_epoch()
    assert 0.3 < method.numbers()["weights_left"] < 0.76
    assert method.step(loss).isfinite()
    check_use(method, name)
