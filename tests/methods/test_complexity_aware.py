"""Complexity-aware training: prices, what it removes, on which networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import OptionError
from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.testing.training import ConvNet, Mlp, captured, loss_of, make_batches
from fxprune_passes.methods import ComplexityAware
from fxprune_passes.methods.method import Loss

Tensor = torch.Tensor


def optimizer_of(program: Program) -> torch.optim.Optimizer:
    return torch.optim.SGD(program.module.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)


def make(kind: type[nn.Module], *args: Any, **options: Any) -> tuple[Any, Loss]:
    program = captured(kind)
    method = ComplexityAware(fp.training.Shrinker(program, optimizer_of(program)), *args, **options)
    (x, y), *_ = make_batches(kind, 1)
    return method, loss_of(x, y)


def scalars(method: ComplexityAware) -> list[str]:
    return [p for p, g in method.gates.items() if not g.theta.dim()]


def test_prices_of_a_block_by_hand() -> None:
    method, _ = make(ConvNet, 0.3, 0.25, 0.6, start=0.8)
    macs = 4 * 36 * (3 * 4 * 9 + 2 * 2 * 4 * 6 * 9) + 4 * 4 * 3
    params = 3 * 4 * 9 + 4 + 8 + 2 * (2 * 4 * 6 * 9 + 12 + 8) + 15
    assert (method.start_macs, method.start_params) == (macs, params)
    b, u = 0.8, 0.8
    costs = method.costs()
    paths = {f"blocks.{i}{part}.gate" for i in range(2) for part in ("", ".conv1")}
    assert costs.keys() == paths
    convs = 6 * u * 2 * 4 * 9
    block = 0.6 * 4 * 36 * convs / macs + 0.4 * (convs + 12 * u + 8) / params
    unit = 0.6 * b * 4 * 36 * 2 * 4 * 9 / macs + 0.4 * b * (2 * 4 * 9 + 2) / params
    assert costs["blocks.0.gate"].item() == pytest.approx(0.3 * 0.25 * block)
    torch.testing.assert_close(
        costs["blocks.0.conv1.gate"], torch.full((6,), 0.3 * 0.75 * unit).double()
    )


def test_alpha_chooses_the_gates() -> None:
    units, _ = make(ConvNet, 0.1, 0, 0.5)
    layers, _ = make(ConvNet, 0.1, 1, 0.5)
    assert scalars(units) == []
    assert scalars(layers) == list(layers.gates) == ["blocks.0.gate", "blocks.1.gate"]


def test_prices_are_worked_out_anew_now_and_then_and_after_removals() -> None:
    method, loss = make(ConvNet, 0.1, 0.5, 0.5, refresh=3, rate=1e-12)
    first = method.costs()
    path = scalars(method)[0]
    method.gates[path].set(0.5)
    assert method.costs() is method.costs() is first
    assert (method.costs()["blocks.0.conv1.gate"] < first["blocks.0.conv1.gate"]).all()
    method.gates[path].set(0.001)
    method.step(loss)
    assert len(method.end_epoch()) == 1
    assert set(method.costs()) == {"blocks.1.gate", "blocks.1.conv1.gate"}


def test_what_is_removed_is_what_was_expected() -> None:
    method, loss = make(ConvNet, 0.1, 0.5, 0.5, rate=1e-12)
    for gate in method.gates.values():
        gate.set(torch.tensor([0.0, 1, 1, 0, 1, 1]) if gate.theta.dim() else 1.0)
    method.gates["blocks.1.gate"].set(0.0)
    expected = method.numbers()
    method.step(loss)
    (change,) = method.end_epoch()
    found = method.numbers()
    assert expected["macs_share"] == expected["params_share"] == 1
    assert expected["expected_macs"] == found["macs_share"]
    assert expected["expected_params"] == found["params_share"]
    assert found["expected_macs"] == pytest.approx(found["macs_share"])
    assert (found["blocks"], found["gated_units"]) == (1, 4)
    assert len(change.plans[0].removed) == 4
    assert method.step(loss).isfinite()


def test_a_block_goes_with_its_last_unit() -> None:
    method, loss = make(ConvNet, 0.1, 0.5, 0.5, rate=1e-12)
    method.gates["blocks.0.conv1.gate"].set(0.001)
    method.step(loss)
    assert method.end_epoch()
    assert not any(n.startswith("blocks.0.") for n in method.module.state_dict())
    assert set(method.gates) == {"blocks.1.gate", "blocks.1.conv1.gate"}


@pytest.mark.parametrize("kind", [ConvNet, Mlp])
def test_a_last_unit_stays_where_no_gate_can_take_the_layer(kind: type[nn.Module]) -> None:
    method, loss = make(kind, 0.1, 0, 0.5, rate=1e-12)
    for gate in method.gates.values():
        gate.set(torch.linspace(0.001, 0.002, len(gate.theta)))
    method.step(loss)
    assert method.end_epoch()
    assert method.numbers()["gated_units"] == 2
    assert method.step(loss).isfinite()
    assert method.end_epoch() == []


def test_dear_units_go_and_the_network_trains_on() -> None:
    method, loss = make(Mlp, 30.0, 0, 1, rate=0.02)
    sizes = []
    for _ in range(6):
        for _ in range(5):
            method.step(loss)
        method.end_epoch()
        sizes.append(method.numbers()["macs_share"])
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.2


def test_a_plain_network_says_that_it_has_no_layers_to_prune() -> None:
    with pytest.raises(fp.training.TrainingError, match="no residual block"):
        make(Mlp, 0.1, 0.5, 0.5)
    with pytest.raises(fp.training.TrainingError, match="insert-skips"):
        make(Mlp, 0.1, 1, 0.5)


def test_what_the_error_advises_works_on_the_same_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    shrinker = fp.training.Shrinker(model.train(), optimizer, args=torch.randn(4, 5))
    with pytest.raises(fp.training.TrainingError, match="insert-skips"):
        ComplexityAware(shrinker, 0.1, 0.5, 0.5)
    assert gates(shrinker.program) == {}
    shrinker.run("insert-skips")
    method = ComplexityAware(shrinker, 0.1, 1, 0.5)
    assert {gate.theta.dim() for gate in method.gates.values()} == {0}


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((0, 0.5, 0.5), {}),
        ((float("nan"), 0.5, 0.5), {}),
        ((0.1, 1.5, 0.5), {}),
        ((0.1, -0.1, 0.5), {}),
        ((0.1, 0.5, 1.01), {}),
        ((0.1, 0.5, 0.5), {"refresh": 0}),
    ],
)
def test_options_out_of_range(args: tuple[float, ...], options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        make(ConvNet, *args, **options)


def test_presets() -> None:
    program = captured(ConvNet)
    shrinker = fp.training.Shrinker(program, optimizer_of(program))
    method = ComplexityAware.preset("imagenet-resnet50", shrinker, rate=0.5)
    assert (method.nu, method.alpha, method.beta, method.rate) == (2.4e-1, 0.5, 0.5, 0.5)
    with pytest.raises(OptionError, match="cifar10-resnet56"):
        ComplexityAware.preset("resnet", shrinker)
