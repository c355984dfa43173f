from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.analysis.group import Group
from fxprune.api import solved
from fxprune.errors import ScoreError
from fxprune.graph.program import Program
from fxprune.importance import criterion_names, score_units
from fxprune.importance.table import _table


def scores(program: Program, group: Group, how: fp.Importance, seed: int = 0) -> np.ndarray:
    return score_units(program, solved(program), [group], how, seed)[group.units]


def named(program: Program, name: str) -> Group:
    return next(g for g in fp.groups(program) if g.name == name)


def by_hand(program: Program, power: int) -> list[np.ndarray]:
    tensors = program.tensors()
    rows = [
        tensors["one.0.weight"].flatten(1),
        tensors["one.0.bias"][:, None],
        tensors["one.2.weight"].transpose(0, 1).flatten(1),
    ]
    return [r.detach().double().abs().pow(power).sum(1).pow(1 / power).numpy() for r in rows]


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("magnitude", 2)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
def test_magnitude_over_all_members(
    program: Program, name: str, power: int, reduction: Literal["mean", "sum", "max"]
) -> None:
    found = scores(
        program, named(program, "one.0.weight:0"), fp.Importance(name, reduction, normalise="none")
    )
    np.testing.assert_allclose(
        found, getattr(np, reduction)(by_hand(program, power), axis=0), rtol=1e-5
    )


def test_normalised_scores_average_to_one(program: Program) -> None:
    found = scores(program, named(program, "one.0.weight:0"), fp.Importance("l1"))
    assert found.mean() == pytest.approx(1)


def test_norm_scale_reads_only_the_scale(program: Program) -> None:
    with torch.no_grad():
        program.tensors()["two.1.weight"].copy_(torch.linspace(-2, 3, 40))
    found = scores(
        program, named(program, "two.0.weight:0"), fp.Importance("bn-scale", normalise="none")
    )
    np.testing.assert_allclose(found, np.abs(np.linspace(-2, 3, 40)), rtol=1e-5)


def test_group_without_a_scale_is_left(program: Program) -> None:
    outcome = fp.prune(program, keep=0.8, importance="bn-scale", verify=False)
    assert 0 not in outcome.plan.kept["one.0.weight"]
    assert any("says nothing" in r.why for r in outcome.remarks)


def test_lamp_of_the_largest_weight_is_one(program: Program) -> None:
    of_tensor = _table["lamp"].of_tensor if criterion_names() else None
    assert of_tensor is not None
    found = of_tensor(None, "", torch.tensor([3.0, 1.0, 2.0]))  # type: ignore[arg-type]
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([1.0, 1 / 14, 4 / 13]))


def test_taylor_sums_over_batches(program: Program) -> None:
    torch.manual_seed(1)
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    how = fp.Importance(
        "taylor", "sum", normalise="none", loss=lambda m: (m(x).square().sum() for x in batches)
    )
    found = scores(program, named(program, "one.0.weight:0"), how)
    expected = np.zeros(24)
    for x in batches:
        loss = program.module(x).square().sum()
        tensors = [program.tensors()[n] for n in ("one.0.weight", "one.0.bias", "one.2.weight")]
        a, b, c = (w * g for w, g in zip(tensors, torch.autograd.grad(loss, tensors), strict=True))
        parts = [a.flatten(1), b[:, None], c.transpose(0, 1).flatten(1)]
        expected += sum(p.detach().double().abs().sum(1).numpy() for p in parts)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_gradients_of_the_model_stay_as_they_were(program: Program) -> None:
    x = torch.randn(2, 3, 8, 8)
    fp.prune(program, importance=fp.Importance("taylor", loss=lambda m: m(x).sum()), verify=False)
    assert all(p.grad is None for p in program.module.parameters())


def test_gradient_criterion_without_a_loss_says_what_to_pass(program: Program) -> None:
    with pytest.raises(ScoreError, match="loss=lambda"):
        fp.prune(program, importance="taylor")


def test_activation_is_the_mean_magnitude_at_the_consumer(
    program: Program, residual: nn.Module
) -> None:
    x = torch.randn(4, 3, 8, 8)
    how = fp.Importance("activation", normalise="none", batches=[(x,)])
    found = scores(program, named(program, "one.0.weight:0"), how)
    with torch.no_grad():
        stem = residual.get_submodule("stem")(x)
        inner = residual.get_submodule("one")[:2](stem)  # type: ignore[index]
    np.testing.assert_allclose(found, inner.abs().mean((0, 2, 3)).numpy(), rtol=1e-4)


def test_random_follows_the_seed(program: Program) -> None:
    group = named(program, "one.0.weight:0")
    a, b, c = (scores(program, group, fp.Importance("random"), seed) for seed in (0, 0, 1))
    assert (a == b).all()
    assert (a != c).any()


def test_weights_that_are_not_finite_are_named(residual: nn.Module) -> None:
    broken = copy.deepcopy(residual)
    with torch.no_grad():
        broken.get_parameter("one.0.weight")[3, 0, 0, 0] = float("nan")
    with pytest.raises(ScoreError, match=r"one\.0\.weight"):
        fp.prune(broken, torch.randn(2, 3, 8, 8))


def test_a_new_criterion_is_one_function(program: Program) -> None:
    @fp.criterion("largest-test-only")
    def largest(evidence: object, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.abs().pow(4)

    assert fp.prune(program, importance="largest-test-only").report.checks[0].ok
    del _table["largest-test-only"]


class Spectral(nn.Module):
    """Channels mixed by complex weights, as in a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Conv1d(3, 6, 1), nn.Conv1d(6, 1, 1)
        self.mix = nn.Parameter(torch.randn(6, 6, 5, dtype=torch.cfloat))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.einsum("bik,iok->bok", torch.fft.rfft(self.inner(x)), self.mix)
        return self.out(torch.fft.irfft(mixed, n=8).relu())


@pytest.mark.parametrize("name", ["magnitude", "l1", "lamp", "taylor", "fisher"])
def test_complex_weights_are_scored_by_real_numbers(name: str) -> None:
    x = torch.randn(2, 3, 8)
    how = fp.Importance(name, loss=lambda module: module(x).square().sum())
    assert fp.prune(Spectral().eval(), x, keep=0.6, importance=how).report.checks[0].ok


def test_a_complex_weight_counts_by_its_absolute_value() -> None:
    program = fp.capture(Spectral().eval(), torch.randn(2, 3, 8))
    weights = program.tensors()["mix"].detach().numpy()
    found = scores(program, named(program, "mix:1"), fp.Importance("l1", "max", normalise="none"))
    wanted = (
        np.abs(weights).sum((0, 2)),
        np.abs(program.tensors()["out.weight"].detach().numpy()).sum((0, 2)),
    )
    np.testing.assert_allclose(found, np.maximum(*wanted), rtol=1e-5)


def test_the_taylor_score_of_a_complex_weight_is_that_of_its_two_parts() -> None:
    model, x = Spectral().eval(), torch.randn(2, 3, 8)
    how = fp.Importance("taylor", "max", normalise="none", loss=lambda module: module(x).sum())
    found = scores(program := fp.capture(model, x), named(program, "mix:1"), how)
    parts = torch.view_as_real(model.mix.detach()).requires_grad_()
    state = {"mix": torch.view_as_complex(parts)}
    loss = torch.func.functional_call(model, state, (x,)).sum()
    (slope,) = torch.autograd.grad(loss, parts)
    wanted = (parts * slope).detach().sum(-1).abs().sum((0, 2)).numpy()
    head = torch.autograd.grad(model(x).sum(), model.out.weight)[0] * model.out.weight
    np.testing.assert_allclose(
        found, np.maximum(wanted, head.detach().abs().sum((0, 2)).numpy()), rtol=1e-4
    )


def test_a_criterion_with_complex_scores_is_refused() -> None:
    fp.criterion("itself-test-only")(lambda evidence, name, tensor: tensor)
    with pytest.raises(ScoreError, match="no order"):
        fp.prune(Spectral().eval(), torch.randn(2, 3, 8), importance="itself-test-only")
    del _table["itself-test-only"]
