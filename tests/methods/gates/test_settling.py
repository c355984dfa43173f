"""Gates decided on data: as enumeration decides them, and without a trace in the network."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import fxprune as fp
from fxprune.testing.training import ConvNet, assert_same, captured, loss_of, make_batches
from fxprune.training import Shrinker, TrainingError
from fxprune_passes.methods import BernoulliLayers, ComplexityAware
from fxprune_passes.methods.gates.running_differences import RunningDifferences
from fxprune_passes.methods.gates.settling import Measured, settle_by_data, settle_by_means
from fxprune_passes.methods.gates.theta_gradients import Estimate

Tensor = torch.Tensor


class Three(nn.Module):
    """Three residual blocks of four units each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def shrinker(model: type[nn.Module]) -> Shrinker:
    torch.manual_seed(0)
    program = fp.capture(model().double().train(), torch.randn(4, 3).double())
    return Shrinker(program, torch.optim.SGD(program.module.parameters(), 0.05))


def regression() -> Any:
    torch.manual_seed(1)
    x, y = torch.randn(20, 3).double(), torch.randn(20, 3).double()
    return lambda module: mse_loss(module(x), y)


@pytest.mark.parametrize("price", [0.01, 0.05, 0.2])
def test_no_single_flip_of_a_branch_lowers_the_objective(price: float) -> None:
    method, loss = BernoulliLayers(shrinker(Three), 1, -price), regression()
    found = list(method.gates.values())
    settle_by_data(method.gates, Measured(method.module, loss), method.costs)
    chosen = tuple(g.theta.item() for g in found)
    values = {}
    for bits in product((0.0, 1.0), repeat=3):
        for gate, bit in zip(found, bits, strict=True):
            gate.set(bit)
        values[bits] = loss(method.module).item() + price * sum(bits)
    assert chosen in values
    near = [b for b in values if sum(x != y for x, y in zip(b, chosen, strict=True)) == 1]
    assert all(values[chosen] <= values[b] for b in near)
    assert values[chosen] < max(values.values())


def test_units_go_where_their_absence_costs_less_than_their_price() -> None:
    """The network is to stay what it is: a unit that nothing reads has no worth, each other one has some."""
    method = ComplexityAware(shrinker(Three), 1e-6, 0.0, 1.0, where="blocks.1*")
    with torch.no_grad():
        method.module.get_parameter("blocks.1.2.weight")[:, 1:3] = 0
    for gate in method.gates.values():
        gate.set(1.0)
    x = torch.randn(20, 3).double()
    y = method.module(x).detach()
    for gate in method.gates.values():
        gate.set(torch.tensor([0.9, 0.7, 0.6, 0.9]))
    assert method.settle(lambda module: mse_loss(module(x), y))
    assert method.gates == {}
    sizes = [len(method.module.get_parameter(f"blocks.{i}.0.weight")) for i in range(3)]
    assert sizes == [4, 2, 4]


def test_settling_leaves_no_trace() -> None:
    (x, y), *_ = make_batches(ConvNet, 1)
    program = captured(ConvNet)
    optimizer = torch.optim.SGD(program.module.parameters(), 0.05)
    method = ComplexityAware(Shrinker(program, optimizer), 0.1, 0.5, 0.5)
    method.step(loss_of(x, y))

    def state() -> Any:
        own = {n: t for n, t in method.module.state_dict().items() if "gate" not in n}
        grads = {n: p.grad for n, p in method.module.named_parameters()}
        requires = {n: p.requires_grad for n, p in method.module.named_parameters()}
        return copy.deepcopy([own, grads, requires, torch.get_rng_state()])

    def loss(module: nn.Module) -> Tensor:
        return loss_of(x, y)(module) + torch.rand(())

    before = state()
    settle_by_data(method.gates, Measured(method.module, loss), method.costs_now)
    assert_same(state(), before)
    assert method.numbers()["undecided"] == 0


def test_a_loss_that_is_not_finite_decides_nothing() -> None:
    method = ComplexityAware(shrinker(Three), 0.1, 0.5, 0.5)
    before = copy.deepcopy([method.state_dict(), method.module.state_dict()])
    calls = iter([0.0, 0.0, 0.0, 0.0, float("nan")])
    with pytest.raises(TrainingError, match="not finite"):
        method.settle(lambda module: regression()(module) + next(calls))
    assert_same([method.state_dict(), method.module.state_dict()], before)
    method.module.eval()
    with pytest.raises(TrainingError, match="eval"):
        method.settle(regression())


def test_training_goes_on_without_chance() -> None:
    method, loss = BernoulliLayers(shrinker(Three), 1, -0.05), regression()
    other = BernoulliLayers(shrinker(Three), 1, -0.05, seed=9)
    for one in (method, other):
        one.settle(loss)
        assert one.gates == {}
    names = list(method.module.state_dict())
    assert 0 < len(names) < 12
    assert [method.step(loss).item() for _ in range(3)] == [
        other.step(loss).item() for _ in range(3)
    ]


def test_without_data_running_means_decide() -> None:
    method = BernoulliLayers(shrinker(Three), 1, -0.05)
    running, (one, two, three) = RunningDifferences(), method.gates
    for sign in (1.0, -1.0, 1.0):
        worth = {one: -0.04 + 0.02 * sign, two: -0.06 + 0.02 * sign}
        running.update({p: Estimate(torch.tensor(w).double()) for p, w in worth.items()})
    running.update({three: Estimate(torch.tensor(9.0).double(), torch.tensor(0.0))})
    settle_by_means(method.gates, running, method.costs)
    assert [g.theta.item() for g in method.gates.values()] == [0.0, 1.0, 1.0]


def test_a_block_whose_units_all_close_goes_although_its_gate_is_open() -> None:
    method = ComplexityAware(shrinker(Three), 0.1, 0.5, 0.5)
    for path, gate in method.gates.items():
        gate.set(0.0 if path.startswith("blocks.1.") and gate.theta.dim() else 1.0)
    assert method.settle()
    assert method.gates == {}
    assert {n.split(".")[1] for n in method.module.state_dict()} == {"0", "2"}


def test_running_means_follow_the_units_that_stay() -> None:
    method = ComplexityAware(shrinker(Three), 0.1, 0.0, 1.0, rate=1e-9)
    method.step(regression())
    path, gate = next(iter(method.gates.items()))
    before = method.differences.means[path].clone()
    gate.theta.data[1] = 0.0
    assert method.end_epoch()
    assert torch.equal(method.differences.means[path], before[[0, 2, 3]])
    assert torch.equal(method.differences.counts[path], torch.ones(3).double())
