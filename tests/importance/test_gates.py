"""Criteria that rest on the gradient by a gate, against gates that are there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.analysis.cache import solved
from fxprune.analysis.group import find_groups
from fxprune.cost import cost_of
from fxprune.errors import OptionError, ScoreError
from fxprune.graph.program import Program
from fxprune.importance import score_units
from fxprune.importance.table import FloatArray

Tensor = torch.Tensor


class Gated(nn.Module):
    """Two convolutions that read the same gated map, with a norm before and a shortcut behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
        self.gate: Tensor = torch.ones(6, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        if torch.is_grad_enabled() and self.gate.requires_grad:
            y = y * self.gate[:, None, None]
        return self.head((self.left(y) + self.right(y)).relu().mean((2, 3)))


@pytest.fixture
def model() -> Gated:
    torch.manual_seed(0)
    made = Gated().double().eval()
    with torch.no_grad():
        for tensor in made.norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return made


def scores(program: Program, how: fp.Importance, group: str = "stem.weight:0") -> FloatArray:
    axes = solved(program)
    groups = find_groups(axes)
    found = next(g for g in groups if g.name == group)
    return score_units(program, axes, list(groups), how)[found.units]


def slopes(model: Gated, scalar: Callable[[Tensor], Tensor], x: Tensor) -> np.ndarray:
    """d scalar / d gate, with a gate that is there."""
    model.gate.requires_grad_(True)
    (found,) = torch.autograd.grad(scalar(model(x)), model.gate)
    model.gate = model.gate.detach()
    return found.numpy()


def test_fisher_is_the_squared_slope_of_a_gate(model: Gated) -> None:
    batches = [torch.randn(2, 3, 6, 6, dtype=torch.float64) for _ in range(3)]
    wanted = np.mean([slopes(model, lambda y: y.square().sum(), x) ** 2 for x in batches], axis=0)
    data = fp.Calibration(batches, loss=lambda y, _: y.square().sum())
    for p in model.parameters():
        p.requires_grad_(False)  # frozen weights are scored too
    program = fp.capture(model, (batches[0],))
    found = scores(program, fp.Importance("fisher", normalise="none", data=data))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert not any(p.requires_grad for p in program.module.parameters())


def test_gauss_newton_is_the_squared_change_of_an_output(model: Gated) -> None:
    """With one number put out, chance is a factor that all units share."""
    model.head = nn.Linear(4, 1).double()
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    wanted = slopes(model, torch.Tensor.sum, x) ** 2
    how = fp.Importance("gauss-newton", normalise="none", data=[x])
    found = scores(fp.capture(model, (x,)), how)
    np.testing.assert_allclose(found / found.mean(), wanted / wanted.mean(), rtol=1e-5)


def test_gauss_newton_takes_each_output_relative_to_its_variance(model: Gated) -> None:
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    how = fp.Importance("gauss-newton", normalise="none", data=[x])
    plain = scores(fp.capture(model, (x,)), how)
    with torch.no_grad():
        for p in model.head.parameters():
            p.mul_(1000)
    np.testing.assert_allclose(scores(fp.capture(model, (x,)), how), plain, rtol=1e-5)


def test_gauss_newton_sees_units_where_the_loss_is_flat(model: Gated) -> None:
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        own = model(x)
    program = fp.capture(model, (x,))
    flat = fp.Calibration([(x, own)])
    np.testing.assert_array_equal(scores(program, fp.Importance("fisher", data=flat)), 0)
    assert (scores(program, fp.Importance("gauss-newton", data=flat)) > 0).all()


def test_scores_by_cost_are_divided_by_what_a_unit_saves(model: Gated) -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    program = fp.capture(model, (x,))
    axes = solved(program)
    plain = scores(program, fp.Importance("gauss-newton", normalise="none", data=[x]))
    gone = np.zeros(axes.n_units, bool)
    whole = cost_of(program, axes, "macs")(gone)
    gone[next(g for g in find_groups(axes) if g.name == "stem.weight:0").units[0]] = True
    saved = whole - cost_of(program, axes, "macs")(gone)
    np.testing.assert_allclose(
        scores(program, fp.Importance("gauss-newton", data=[x])), plain / saved
    )


def test_queries_and_keys_count_once() -> None:
    """Units of a product of two layers have one gate, not two."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) @ self.k(x).transpose(1, 2)

    torch.manual_seed(0)
    model, x = Product(), torch.randn(2, 5, 4)
    data = fp.Calibration([x], loss=lambda y, _: y.square().sum())
    with torch.enable_grad():
        gate = torch.ones(3, requires_grad=True)
        y = (model.q(x) * gate) @ model.k(x).transpose(1, 2)
        (slope,) = torch.autograd.grad(y.square().sum(), gate)
    how = fp.Importance("fisher", normalise="none", data=data)
    found = scores(fp.capture(model, (x,)), how, "q.weight:0")
    np.testing.assert_allclose(found, slope.numpy() ** 2, rtol=1e-4)


def test_outputs_that_are_not_finite_are_refused(model: Gated) -> None:
    x = torch.full((2, 3, 6, 6), float("nan"), dtype=torch.float64)
    program = fp.capture(model, (torch.zeros_like(x),))
    data = fp.Calibration([x], loss=lambda y, _: y.sum())
    with pytest.raises(ScoreError, match="not finite"):
        scores(program, fp.Importance("fisher", data=data))
    with pytest.raises(ScoreError, match="criterion 'gauss-newton'"):
        scores(program, fp.Importance("gauss-newton", data=[x]))


def test_an_unknown_way_to_normalise_is_named() -> None:
    with pytest.raises(OptionError, match="choose one of group, cost, none"):
        fp.Importance("fisher", normalise="yes")  # type: ignore[arg-type]
