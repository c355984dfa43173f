"""What all methods have in common."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.testing.training import ConvNet, captured, loss_of, make_batches, make_model, weights
from fxprune.training import Shrinker
from fxprune_passes.methods import BernoulliLayers
from fxprune_passes.methods.method import Method

X, Y = make_batches(ConvNet, 1)[0]


def shrinker() -> Shrinker:
    program = captured()
    return Shrinker(program, torch.optim.SGD(weights(program), 0.05))


def outputs(program: Program) -> torch.Tensor:
    program.eval()
    found: torch.Tensor = program(X)
    program.train()
    return found


def test_a_method_that_does_nothing_trains_plainly() -> None:
    method, twin = Method(shrinker()), make_model()
    plain = torch.optim.SGD(twin.parameters(), 0.05)
    for x, y in make_batches(ConvNet, 3):
        value = method.step(loss_of(x, y))
        plain.zero_grad()
        loss = cross_entropy(twin(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        plain.step()
        assert torch.allclose(value, loss, rtol=1e-12)
    assert method.end_epoch() == []


def test_gates_that_are_left_are_open_from_one_half_on() -> None:
    method = BernoulliLayers(shrinker(), 100, -10.0)
    assert str(method) == (
        "BernoulliLayers of ConvNet: gates 2, undecided 2, theta_mean 0.9, theta_min 0.9, "
        "last_removal 0, blocks 2"
    )
    low, high = method.gates.values()
    with torch.no_grad():
        low.theta.fill_(0.4)
        high.theta.fill_(0.6)
    program = method.finish_training(round_gates=True)
    assert gates(program) == {}
    assert (float(low.theta), float(high.theta)) == (0.4, 0.6)
    low.set(0.0)
    high.set(1.0)
    assert torch.allclose(program(X), outputs(method.shrinker.program), rtol=1e-9)
