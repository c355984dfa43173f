"""Layer pruning by Bernoulli gates: the prior, what it removes, on which networks."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

import fxprune as fp
from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.testing.training import ConvNet, Transformer, captured, loss_of
from fxprune_passes.methods import BernoulliLayers

Tensor = torch.Tensor


def make(program: Program, *args: Any, lr: float = 0.05, **options: Any) -> BernoulliLayers:
    optimizer = torch.optim.SGD(program.module.parameters(), lr, momentum=0.9)
    return BernoulliLayers(fp.training.Shrinker(program, optimizer), *args, **options)


def make_conv(*args: Any, **options: Any) -> BernoulliLayers:
    return make(captured(ConvNet), *args, **options)


def objective(pi: float, theta: float, g: float) -> float:
    """KL(Bernoulli(theta) || Bernoulli(pi)) - log p(pi | g)."""
    divergence = sum(a * log(a / b) for a, b in ((theta, pi), (1 - theta, 1 - pi)) if a)
    return divergence - log((g - 1) / log(g) / (1 + (g - 1) * (1 - pi)))


@pytest.mark.parametrize("g", [0.9, 0.5, 0.1, 1e-3])
def test_the_flattening_prior_is_linear_in_theta(g: float) -> None:
    """Against a brute-force minimum over pi."""
    rest = log(g) - log((g - 1) / log(g))
    for theta in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98):
        found = minimize_scalar(
            lambda pi, theta=theta: objective(pi, theta, g),
            bounds=(1e-12, 1 - 1e-12),
            method="bounded",
            options={"xatol": 1e-12},
        )
        assert found.x == pytest.approx(g * theta / (1 + (g - 1) * theta), abs=1e-6)
        assert found.fun == pytest.approx(rest - theta * log(g), abs=1e-8)


def test_costs_follow_log_g_and_samples() -> None:
    method = make_conv(200, {"blocks.1": -3.0, "*": -5.0})
    costs = {path: cost.item() for path, cost in method.costs().items()}
    assert costs == {"blocks.0.gate": 5 / 200, "blocks.1.gate": 3 / 200}
    assert {c.item() for c in make_conv(200, -4.0).costs().values()} == {4 / 200}


@pytest.mark.parametrize(
    ("samples", "log_g", "options"),
    [
        (0, -1.0, {}),
        (10, 0.0, {}),
        (10, 1.0, {}),
        (10, float("-inf"), {}),
        (10, {"nothing": -1.0}, {}),
        (10, -1.0, {"lam": -1.0}),
        (10, -1.0, {"kappa": 0.0}),
    ],
    ids=str,
)
def test_options_out_of_range(samples: int, log_g: Any, options: Any) -> None:
    with pytest.raises(OptionError):
        make_conv(samples, log_g, **options)


class Planted(nn.Module):
    """Two blocks: one sees the two numbers that decide the class, the other numbers of no use."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.useless, self.needed = (
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(2)
        )
        self.register_buffer("mask", torch.tensor([1.0, 1.0, 0.0, 0.0]))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.useless(x * (1 - self.mask))
        x = x + self.needed(x * self.mask)
        found: Tensor = self.head(x)
        return found


@pytest.mark.parametrize("estimator", ["two-pass", "score", "first-order", "trapezoid"])
def test_a_useless_block_goes_and_a_needed_one_stays(estimator: Any) -> None:
    """The class is whether two signs agree: no linear layer knows, and one block is enough."""
    torch.manual_seed(0)
    method = make(
        fp.capture(Planted().double().train(), torch.randn(4, 4).double()),
        1000,
        -100.0,
        lr=0.1,
        rate=0.06,
        estimator=estimator,
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for _ in range(100):
            x = torch.randn(64, 4, generator=generator, dtype=torch.float64)
            x[:, :2] += x[:, :2].sign()
            y = (x[:, 0] * x[:, 1] > 0).long()
            value = method.step(loss_of(x, y))
        method.end_epoch()
    names = {n.split(".")[0] for n in method.module.state_dict()}
    assert "useless" not in names
    assert "needed" in names
    assert value < 0.2
    assert method.numbers()["blocks"] == 1


@pytest.mark.parametrize(("kappa", "left"), [(None, 2), (1e3, 2), (0.05, 1)])
def test_the_early_test_closes_what_cannot_recover(kappa: float | None, left: int) -> None:
    """With a = lam |log g| / kappa^2 = 40 a block of small weights goes, one of ||W||^2 / 2 > 1600 stays."""
    method = make_conv(1000, -10.0, lam=0.01, kappa=kappa, start=0.5)
    with torch.no_grad():
        for name, parameter in method.module.named_parameters():
            if "gate" not in name:
                parameter.mul_(100 if name.startswith("blocks.1.") else 0.01)
    method.finish()
    method.end_epoch()
    assert len(method.gates) == left
    assert list(method.gates)[-1] == "blocks.1.gate"


def test_numbers() -> None:
    method = make_conv(1000, -1.0)
    assert method.numbers() == {
        "gates": 2.0,
        "undecided": 2.0,
        "last_removal": 0.0,
        "theta_mean": pytest.approx(0.9),
        "theta_min": pytest.approx(0.9),
        "blocks": 2.0,
    }


def test_blocks_by_name() -> None:
    method = make(captured(Transformer), 1000, -1.0)
    assert len(method.gates) == 2
    method = make_conv(1000, -1.0, where="blocks.1")
    assert list(method.gates) == ["blocks.1.gate"]
    method = make_conv(1000, -1.0, ignore=["blocks.1"])
    assert list(method.gates) == ["blocks.0.gate"]
