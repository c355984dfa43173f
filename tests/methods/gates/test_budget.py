"""A wished cost is reached while training: the price of a step, and whole runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import fxprune as fp
from fxprune.errors import OptionError
from fxprune.training import Shrinker
from fxprune_passes.methods import BernoulliLayers, ComplexityAware
from fxprune_passes.methods.gates import cost_share
from fxprune_passes.methods.gates.budget import Budget, least_price
from fxprune_passes.methods.gates.cost_share import blocks_around, present_cost

Tensor = torch.Tensor


class Block(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, inside), nn.Linear(inside, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(torch.tanh(self.up(x)))
        return x + found


class Net(nn.Module):
    """Six blocks of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(n) for n in (12, 16, 20, 24, 16, 12)))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.blocks(x)
        return found


def shrinker() -> Shrinker:
    torch.manual_seed(0)
    program = fp.capture(Net().double().train(), torch.randn(4, 4).double())
    return Shrinker(program, torch.optim.SGD(program.module.parameters(), 0.05, momentum=0.9))


def batches(seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(32, 4, generator=generator).double()
        y = x + torch.tanh(3 * x.roll(1, 1)) * x

        def loss(module: nn.Module, x: Tensor = x, y: Tensor = y) -> Tensor:
            return mse_loss(module(x), y)

        yield loss


def train(method: Any, data: Any, epochs: int) -> list[dict[str, float]]:
    rows = []
    for _ in range(epochs):
        for _ in range(20):
            method.step(next(data))
        method.end_epoch()
        rows.append(method.numbers())
    return rows


def test_the_price_is_the_least_that_meets_the_target() -> None:
    assert least_price(lambda price: -1.0, 1.0) == 0.0
    assert least_price(lambda price: 0.7 - price, 1.0) == pytest.approx(0.7, rel=1e-4)
    assert least_price(lambda price: 40 - price, 1.0) == pytest.approx(40, rel=1e-4)


def test_a_step_meets_its_target() -> None:
    method = BernoulliLayers(shrinker(), keep=0.5, settle_at=10, start=0.9)
    budget = Budget(method.shrinker.program, 0.5, "macs")
    program, found = method.shrinker.program, method.gates
    worthy = next(iter(found))
    for progress in (0.1, 0.35, 0.7, 1.0):
        moved = {p: g.theta.detach() + 0.5 * (p == worthy) for p, g in found.items()}
        budget.step(program, found, moved, lambda _: 1.0, progress)
        top = budget.top or 0.0
        target = top + (0.5 - top) * min(1, progress / 0.7)
        assert budget.share(program, found) == pytest.approx(target, abs=1e-4)
    assert found[worthy].theta == max(g.theta for g in found.values())
    assert budget.price > 0


@pytest.mark.parametrize("metric", ["macs", "params"])
@pytest.mark.parametrize("on_data", [True, False])
def test_units_and_layers_reach_the_wished_cost(metric: Any, on_data: bool) -> None:
    method = ComplexityAware(
        shrinker(),
        keep=0.5,
        metric=metric,
        epochs=10,
        settle_on=next(batches(9)) if on_data else None,
        verify=False,
    )
    start = present_cost(method.shrinker.program)
    rows = train(method, batches(), 8)
    left = [b / a for a, b in zip(start, present_cost(method.shrinker.program), strict=True)]
    assert method.gates == {}
    assert left[metric == "params"] == pytest.approx(0.5, rel=0.03)
    shares = [row["expected_share"] for row in rows]
    assert shares[4] == pytest.approx(0.5, abs=0.05)  # before gates settle
    assert rows[0]["price"] == 0
    assert rows[4]["price"] > 0


@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_layers_come_as_near_as_a_block_allows(keep: float) -> None:
    method = BernoulliLayers(shrinker(), keep=keep, epochs=10, verify=False)
    start, _ = present_cost(method.shrinker.program)
    train(method, batches(), 7)
    left, _ = present_cost(method.shrinker.program)
    assert method.gates == {}
    # The widest block has 24 of 100 hidden units.
    assert abs(left / start - keep) <= 0.12


@pytest.fixture
def by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that follows the number of parameters."""

    def compare(before: fp.Program, after: fp.Program, **_: Any) -> Any:
        sizes = [sum(p.numel() for p in x.module.parameters()) for x in (before, after)]
        return SimpleNamespace(ratio=0.2 + 0.8 * sizes[1] / sizes[0])

    monkeypatch.setattr(cost_share, "compare_latency", compare)


@pytest.mark.usefixtures("by_size")
def test_latency_is_that_of_the_blocks_that_are_left() -> None:
    options: dict[str, Any] = {"epochs": 10, "total_steps": 20, "verify": False}
    method = ComplexityAware(shrinker(), keep=0.5, metric="latency", **options)
    budget = method.budget
    assert budget is not None
    program, found = method.shrinker.program, method.gates
    budget.cost.measure(program, rounds=3)
    blocks = [p for p, g in found.items() if not g.theta.dim()]
    assert list(budget.cost.times) == blocks
    for gate in found.values():
        gate.set(1.0)
    assert budget.share(program, found) == pytest.approx(1)
    found[blocks[0]].set(0.0)
    unit = next(p for p, block in budget.cost.around.items() if block == blocks[1])
    found[unit].theta.data[::2] = 0
    times = list(budget.cost.times.values())
    fixed = budget.cost.fixed[blocks[1]]  # the last bias stays
    assert 0 < fixed < 0.05
    expected = 1 - times[0] - times[1] * (1 - fixed) / 2
    assert budget.share(program, found) == pytest.approx(expected)
    method.finish()
    assert method.end_epoch()
    assert budget.share(method.shrinker.program, method.gates) == pytest.approx(expected)


def test_a_part_of_the_time_of_a_block_stays_with_any_of_its_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = ComplexityAware(shrinker(), keep=0.5, metric="latency", epochs=9, verify=False)
    budget = method.budget
    assert budget is not None
    program, found = method.shrinker.program, method.gates
    first = next(p for p, g in found.items() if not g.theta.dim())
    inside = [p for p, block in blocks_around(program).items() if block == first]
    ratios = iter(
        [0.7, *[0.9] * 100]
    )  # without the first block; without half of its units; others do not matter

    def compare(before: fp.Program, after: fp.Program, **_: Any) -> Any:
        return SimpleNamespace(ratio=next(ratios))

    monkeypatch.setattr(cost_share, "compare_latency", compare)
    budget.cost.measure(program)
    assert budget.cost.times[first] == pytest.approx(0.3)
    assert budget.cost.fixed[first] == pytest.approx(1 / 3)  # a half of the units takes 0.2 of 0.3
    for gate in found.values():
        gate.set(1.0)
    for path in inside:
        found[path].theta.data[::2] = 0
    left = sum(float(found[p].theta.mean()) for p in inside) / len(inside)
    share = budget.share(program, found)
    assert share == pytest.approx(1 - 0.3 * (1 - (1 + 2 * left) / 3))


@pytest.mark.usefixtures("by_size")
def test_a_latency_of_units_alone() -> None:
    method = ComplexityAware(
        shrinker(), alpha=0.0, keep=0.6, metric="latency", epochs=8, verify=False
    )
    rows = train(method, batches(), 6)
    assert method.gates == {}
    assert rows[-1]["expected_share"] == pytest.approx(0.6, abs=0.05)
    assert rows[2]["price"] > 0


@pytest.mark.usefixtures("by_size")
@pytest.mark.parametrize("resumed", [False, True])
def test_a_latency_that_blocks_alone_do_not_foretell_is_met(
    monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    options: dict[str, Any] = {"epochs": 10, "total_steps": 20, "verify": False}
    method = ComplexityAware(shrinker(), keep=0.6, metric="latency", **options)
    budget = method.budget
    assert budget is not None
    program, found = method.shrinker.program, method.gates
    budget.cost.measure(program)
    alone = vars(cost_share)["compare_latency"]

    def together(before: fp.Program, after: fp.Program, **_: Any) -> Any:
        """What goes together saves half as much."""
        return SimpleNamespace(ratio=0.5 + 0.5 * alone(before, after).ratio)

    monkeypatch.setattr(cost_share, "compare_latency", together)
    if resumed:
        state = budget.cost.state_dict()
        budget.cost = cost_share.CostShare(program, "latency")
        budget.cost.load_state_dict(state)
    for gate in found.values():
        gate.set(1.0)
    start = cost_share._at(program, {})
    with torch.no_grad():
        budget.settle(program, found, method.differences)
    end = cost_share._at(program, {p: g.theta for p, g in found.items()})
    measured = together(start, end).ratio
    assert budget.share(program, found) == pytest.approx(measured, abs=1e-6)
    assert measured == pytest.approx(0.6, rel=0.05)


@pytest.mark.usefixtures("by_size")
def test_of_several_measured_networks_the_nearest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"epochs": 10, "total_steps": 20, "verify": False}
    method = ComplexityAware(shrinker(), keep=0.6, metric="latency", **options)
    budget = method.budget
    assert budget is not None
    budget.cost.measure(method.shrinker.program)
    measured = iter([0.8, 0.59, 0.3, 0.9])
    tried: list[Any] = []

    def compare(before: fp.Program, after: fp.Program, **_: Any) -> Any:
        tried.append([gate.theta.clone() for gate in method.gates.values()])
        return SimpleNamespace(ratio=next(measured))

    monkeypatch.setattr(cost_share, "compare_latency", compare)
    with torch.no_grad():
        budget.settle(method.shrinker.program, method.gates, method.differences)
    assert len(tried) == 4
    assert all(map(torch.equal, tried[1], [gate.theta for gate in method.gates.values()]))
    assert budget.share(method.shrinker.program, method.gates) == pytest.approx(0.59)


@pytest.mark.usefixtures("by_size")
def test_a_latency_is_not_measured_twice_for_the_same_gates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = BernoulliLayers(shrinker(), keep=0.5, metric="latency", epochs=8, verify=False)
    budget = method.budget
    assert budget is not None
    corrected: list[int] = []
    monkeypatch.setattr(budget.cost, "correct", lambda program: corrected.append(1))
    with torch.no_grad():
        budget.settle(method.shrinker.program, method.gates, method.differences)
    assert len(corrected) == 1


@pytest.mark.usefixtures("by_size")
def test_latency_by_layers() -> None:
    method = BernoulliLayers(shrinker(), keep=0.5, metric="latency", epochs=8, verify=False)
    rows = train(method, batches(), 6)
    assert method.gates == {}
    assert rows[-1]["expected_share"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"keep": 0.0, "settle_at": 3},
        {"keep": 1.0, "settle_at": 3},
        {"keep": 0.5},
        {"keep": 0.5, "settle_at": 3, "metric": "watts"},
        {"keep": 0.5, "settle_at": 3, "samples": 10, "log_g": -1.0},
        {},
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        BernoulliLayers(shrinker(), **options)
