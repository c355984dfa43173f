"""Layers that go: activations between two layers, padding that moves, layers that are fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.observe import observers
from fxprune.testing.training import ConvNet, captured, loss_of, make_batches
from fxprune.training import Shrinker
from fxprune_passes.insert.places.weighted import weight_of
from fxprune_passes.methods.activations.entropy_layers import find_entropy_layers
from fxprune_passes.methods.entropy_guided import EntropyGuided


def start(program: Program, **options: Any) -> EntropyGuided:
    optimizer = torch.optim.SGD(program.module.parameters(), 0.01, momentum=0.9)
    return EntropyGuided(Shrinker(program, optimizer), None, **options)


def run(method: EntropyGuided, kind: type[nn.Module], epochs: int) -> list[int]:
    """Trains; returns the layers gone after each epoch."""
    gone = []
    for _ in range(epochs):
        for x, y in make_batches(kind, 3):
            method.step(loss_of(x, y))
        method.end_epoch()
        gone.append(int(method.numbers()["layers_gone"]))
    return gone


def layers(program: Program) -> int:
    return sum(bool(weight_of(n)) for n in program.nodes)


def test_blocks_lose_a_layer_each() -> None:
    """Two residual blocks with norms: six layers, of which two go."""
    method = start(captured(), between_layers=True, move_padding=True, fuse_when="always")
    assert method.numbers()["layers_gone"] == 0
    assert run(method, ConvNet, 4) == [1, 2, 2, 2]
    assert method.done
    assert method.numbers()["layers_linear"] == 2
    assert layers(method.shrinker.program) == 6
    small = method.finish_training()
    assert layers(small) == 4
    assert not any(n.op == "call_function" and "add" in str(n.target) for n in small.nodes)
    x = make_batches(ConvNet, 1)[0][0]
    torch.testing.assert_close(small(x), method.settled().eval()(x), rtol=1e-10, atol=1e-10)


def test_between_padded_layers_none_goes_without_moved_padding() -> None:
    method = start(captured(), between_layers=True, fuse_when="always")
    assert run(method, ConvNet, 3) == [0, 0, 0]
    assert method.numbers()["layers_linear"] == 2
    assert layers(method.finish_training()) == 6


def test_linear_layers_are_fused_exactly() -> None:
    """A perceptron of four layers becomes one layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(m for _ in range(3) for m in (nn.Linear(8, 8), nn.ReLU())), nn.Linear(8, 3)
    )
    data = [(torch.randn(16, 8).double(), torch.randint(3, (16,))) for _ in range(3)]
    method = start(fp.capture(model.double().train(), data[0][0]))
    gone = []
    for _ in range(4):
        for x, y in data:
            method.step(loss_of(x, y))
        method.end_epoch()
        gone.append(method.layers_gone)
    assert gone == [1, 2, 3, 3]
    small = method.finish_training()
    assert layers(small) == 1
    x = data[0][0]
    torch.testing.assert_close(small(x), method.settled().eval()(x), rtol=1e-10, atol=1e-10)


def test_which_activations_lie_between_two_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
            self.norm, self.head, self.tail = nn.BatchNorm2d(4), nn.Linear(4, 8), nn.Linear(8, 3)
            self.first, self.second, self.third = nn.ReLU(), nn.ReLU(), nn.GELU()
            self.fourth, self.fifth = nn.ReLU(), nn.ReLU()
            self.drop = nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(self.norm(self.a(x)))  # read by a layer and a sum
            x = self.second(x + self.b(x))  # behind a sum
            x = nn.functional.max_pool2d(self.third(self.c(x)), 2)  # before a maximum
            x = self.fourth(self.a(x)).mean((2, 3))
            found: Tensor = self.tail(self.drop(self.fifth(self.head(x))))
            return found

    program = fp.run(Net(), torch.randn(2, 4, 8, 8), "insert-observers").program
    assert len(observers(program)) == 5
    found = [layer.path for layer in find_entropy_layers(program) if layer.between_layers]
    assert found == ["fourth.observer", "fifth.observer"]
