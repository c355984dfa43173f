"""The life of gates: an untouched warm-up, rates that follow from prices, an end without chance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import OptionError
from fxprune.testing.training import ConvNet, assert_same, captured, loss_of, make_batches
from fxprune.training import Shrinker, TrainingError
from fxprune_passes.methods import BernoulliLayers, ComplexityAware
from fxprune_passes.methods.gates.theta_gradients import Estimator

BATCHES = make_batches(ConvNet, 4)


def sgd(program: fp.Program, lr: float = 0.05) -> Shrinker:
    return Shrinker(program, torch.optim.SGD(program.module.parameters(), lr, momentum=0.9))


def layers(price: float = 0.1, lr: float = 0.05, **options: Any) -> BernoulliLayers:
    return BernoulliLayers(sgd(captured(ConvNet), lr), 1, -price, verify=False, **options)


def run_epoch(method: Any, steps: int = 4) -> list[Any]:
    for i in range(steps):
        method.step(loss_of(*BATCHES[i % 4]))
    found: list[Any] = method.end_epoch()
    return found


def thetas(method: Any) -> list[float]:
    return [t for g in method.gates.values() for t in g.theta.detach().flatten().tolist()]


@pytest.mark.parametrize("estimator", ["two-pass", "trapezoid"])
def test_a_warm_up_is_training_without_gates(estimator: Estimator) -> None:
    plain = captured(ConvNet)
    optimizer = torch.optim.SGD(plain.module.parameters(), 0.05, momentum=0.9)
    method = layers(start_after=2, estimator=estimator, start=0.7)
    for _ in range(2):
        assert thetas(method) == [1.0, 1.0]
        for x, y in BATCHES:
            optimizer.zero_grad()
            loss_of(x, y)(plain.module).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert run_epoch(method) == []
    mine = {n: t for n, t in method.module.state_dict().items() if "gate" not in n}
    assert_same(mine, plain.module.state_dict())
    assert thetas(method) == [pytest.approx(0.7)] * 2
    run_epoch(method)
    assert thetas(method) != [pytest.approx(0.7)] * 2


def test_existing_gates_keep_their_theta_in_a_warm_up() -> None:
    method = layers(start_after=1)
    next(iter(method.gates.values())).set(0.4)
    run_epoch(method)
    assert thetas(method) == [pytest.approx(0.4), pytest.approx(0.9)]


@pytest.mark.parametrize(
    "make",
    [layers, lambda **o: ComplexityAware(sgd(captured(ConvNet)), 0.1, 0.5, 0.5, verify=False, **o)],
)
def test_gates_decide_at_an_epoch(make: Any) -> None:
    method = make(settle_at=2)
    run_epoch(method)
    assert method.numbers()["undecided"] == len(thetas(method)) > 0
    assert run_epoch(method)
    assert method.gates == {}
    assert method.numbers()["undecided"] == 0
    assert run_epoch(method) == []
    assert method.numbers()["last_removal"] in (0, 2)
    assert method.finish_training().module is not method.module


def test_the_end_of_training_is_refused_while_gates_are_undecided() -> None:
    method = layers()
    run_epoch(method)
    with pytest.raises(TrainingError, match=r"2 gates are undecided") as error:
        method.finish_training()
    assert "blocks.0.gate (0." in error.value.where
    assert "settle" in error.value.do
    method.finish_training(round_gates=True)
    for gate, theta in zip(method.gates.values(), (0.0, 1.0), strict=True):
        gate.set(theta)
    assert "blocks.0.conv1.weight" not in method.finish_training().tensors()


@pytest.mark.parametrize("estimator", ["two-pass", "score", "trapezoid"])
@pytest.mark.parametrize("start_after", [0, 3])
def test_a_useless_block_falls_in_the_stated_share(estimator: Estimator, start_after: int) -> None:
    """20 epochs of 10 steps; a branch of zeros falls within 0.3 of them, which are 60 steps."""
    method = layers(
        lr=1e-12,
        rate="auto",
        epochs=20,
        start_after=start_after,
        estimator=estimator,
        pick="cyclic",
    )
    for name, parameter in method.module.named_parameters():
        if ".bn2." in name:
            nn.init.zeros_(parameter)
    for _ in range(max(1, start_after)):
        run_epoch(method, 10)
    if estimator == "score":  # only the price acts where the baseline is the loss
        method.gradients.baseline = loss_of(*BATCHES[0])(method.module).detach()
    for epoch in range(6):
        fall = 0.9 * epoch / 6
        assert all(
            t == pytest.approx(0.9 - fall, abs=0.035 if estimator != "score" else 0.4)
            for t in thetas(method)
        )
        run_epoch(method, 10)
    if estimator != "score":
        run_epoch(method, 2)
        assert method.gates == {}


def test_all_steps_may_be_given() -> None:
    method = layers(lr=1e-12, rate="auto", total_steps=100, estimator="trapezoid", fall_within=0.5)
    for name, parameter in method.module.named_parameters():
        if ".bn2." in name:
            nn.init.zeros_(parameter)
    method.step(loss_of(*BATCHES[0]))
    assert thetas(method) == [pytest.approx(0.9 - 0.9 / 50)] * 2


def test_useless_units_fall_as_fast_as_useless_branches() -> None:
    program = captured(ConvNet)
    method = ComplexityAware(sgd(program, 1e-12), 0.1, 0.3, 1.0, rate=0.5)
    for name, parameter in method.module.named_parameters():
        if ".bn2." in name:
            nn.init.zeros_(parameter)
    method.step(loss_of(*BATCHES[0]))
    first, *rest = thetas(method)
    assert first < 0.899
    assert rest == [pytest.approx(first)] * 13
    assert (method.rate, method.unit_rate) == (0.5, None)


@pytest.mark.parametrize(
    "options",
    [
        {"rate": "auto"},
        {"unit_rate": "auto"},
        {"unit_rate": 0.0},
        {"rate": "auto", "epochs": 0},
        {"fall_within": 0.0},
        {"start_after": -1},
        {"settle_at": 0},
        {"start_after": 2, "settle_at": 2},
        {"total_steps": 0},
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        layers(**options)


def test_auto_needs_a_price() -> None:
    method = layers(rate="auto", total_steps=10)
    method.costs = lambda: {p: g.theta.detach() * 0 for p, g in method.gates.items()}  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="price"):
        method.step(loss_of(*BATCHES[0]))
