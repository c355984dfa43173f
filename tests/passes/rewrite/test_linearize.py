"""Tests of linearize: always on, always off, both, and nearly so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.observe import OnFraction, observers
from fxprune.pipeline import Result, run_pipeline
from fxprune.structure.activations import find_activations
from fxprune_passes.rewrite.linearize import Linearize

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()


class Net(nn.Module):
    """A stem, a residual branch with an activation, a head."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.act, self.head = act or nn.ReLU(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.b(self.act(self.a(x))))


def watched(model: nn.Module) -> Program:
    program = fp.capture(model.double().eval(), X)
    program = run_pipeline(program, "insert-observers").program
    program(X)
    return program


def shifted(act: nn.Module, shift: float, rows: slice = slice(None)) -> Program:
    model = Net(act)
    with torch.no_grad():
        model.a.bias.fill_(50.0)
        model.a.bias[rows] = shift
    return watched(model)


def activations(program: Program) -> int:
    return len(list(find_activations(program)))


def codes(result: Result) -> list[str]:
    found = [r.code.partition(".")[2] for r in result.select("linearize")]
    return [code for code in found if code != "not-verified"]


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(), nn.ELU(), nn.CELU(), nn.PReLU()])
def test_always_on_is_the_identity(act: nn.Module) -> None:
    program = shifted(act, 50.0)
    result = run_pipeline(program, "linearize")
    assert codes(result)[0] == "identity"
    assert activations(result.program) == 0
    torch.testing.assert_close(result.program(X), program(X))
    assert list(observers(result.program)) == ["act.observer"]


@pytest.mark.parametrize(
    "act",
    [
        *(nn.GELU(), nn.SiLU(), nn.ReLU6(), nn.Hardtanh(0, 6), nn.Hardswish(), nn.Tanh()),
        *(nn.SELU(), nn.ELU(2.0), nn.Hardtanh(-1, 1)),
    ],
)
def test_what_is_no_identity_stays(act: nn.Module) -> None:
    program = shifted(act, 50.0)
    result = run_pipeline(program, "linearize")
    linear = isinstance(act, nn.ELU)  # whatever alpha is, it leaves what is above 0 alone
    assert (result.program is program) != linear
    assert "nonlinear" in codes(result) or linear


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0, 2), nn.Threshold(0, 0)])
def test_always_off_is_0_as_far_as_it_reaches(act: nn.Module) -> None:
    program = shifted(act, -50.0)
    result = run_pipeline(program, "linearize | dead-code")
    assert codes(result)[0] == "zero"
    assert activations(result.program) == 0
    assert set(result.program.tensors()) == {
        "stem.weight", "stem.bias", "b.bias", "head.weight", "head.bias",
    }  # fmt: skip
    torch.testing.assert_close(result.program(X), program(X))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_a_norm_behind_what_is_always_off_gives_its_shift(affine: bool, mode: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)
            self.bn1, self.bn2 = nn.BatchNorm2d(5), nn.BatchNorm2d(3, affine=affine)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.bn1(self.one(x)))
            return torch.relu(x + self.bn2(self.two(y)))

    model = Block().double().train(mode)
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        model.bn1.bias.fill_(-50.0)
        if affine:
            model.bn2.weight.uniform_(0.5, 2)
            model.bn2.bias.normal_()
    program = run_pipeline(fp.capture(model, images), "insert-observers").program
    before = program(images)
    result = run_pipeline(program, "linearize | dead-code")
    assert "zero" in codes(result)
    torch.testing.assert_close(result.program(images), before)
    left = {n for n, t in result.program.tensors().items() if isinstance(t, nn.Parameter)}
    if mode:
        assert left == ({"bn2.bias"} if affine else set())
    else:
        assert "one.weight" not in left


def test_a_0_that_all_depends_on_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model.get_parameter("0.bias").fill_(-50.0)
    result = run_pipeline(watched(model), "linearize")
    assert codes(result)[-1] == "stuck"
    assert not result.changed


def test_the_off_units_of_a_split_layer_go_and_the_identity_is_left() -> None:
    program = shifted(nn.ReLU(), -50.0, slice(0, 3))
    result = run_pipeline(program, "linearize")
    assert codes(result) == ["units", "identity"]
    assert result.program.tensors()["b.weight"].shape == (6, 5)
    assert observers(result.program)["act.observer"].get_buffer("on").shape == (5,)
    torch.testing.assert_close(result.program(X), program(X))
    assert result.plans
    assert run_pipeline(result.program, "linearize").program is result.program


def test_off_units_that_others_read_stay() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x + torch.relu(x))

    model = Shared()
    with torch.no_grad():
        model.a.bias.copy_(torch.tensor([-50.0, 50, 50, -50, 50, 50]))
    program = watched(model)
    result = run_pipeline(program, "linearize")
    assert "mixed" in codes(result)
    assert result.program is program


def test_other_activations_are_left_with_their_entropy() -> None:
    program = watched(Net())
    result = run_pipeline(program, "linearize")
    assert result.program is program
    (left,) = result.select("linearize", "missed")
    assert "bits, eps is 0" in left.why


class Loss:
    """The sum of an output's squares, and how often it was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module: Any) -> Tensor:
        self.calls += 1
        assert not any("observer" in name for name, _ in module.named_modules())
        loss: Tensor = module(X).detach().square().mean()
        return loss.double()


def test_nearly_linear_goes_where_the_loss_allows() -> None:
    program = watched(Net(nn.GELU()))
    seen = int(observers(program)["act.observer"].seen)
    assert codes(run_pipeline(program, "linearize{eps=2}")) == ["no-loss"]
    loss = Loss()
    kept = run_pipeline(program, Linearize(eps=2.0, rise=1e6, loss=loss))
    assert codes(kept)[0] == "nearly"
    assert activations(kept.program) == 0
    assert loss.calls == 2
    change = kept.select("linearize", "applied")[0].what
    assert (
        f"{float(Loss()(run_pipeline(program, 'remove-observers').program.module)):.6g}" in change
    )
    refused = run_pipeline(program, Linearize(eps=2.0, rise=-1e6, loss=loss))
    assert refused.program is program
    assert codes(refused) == ["loss"]
    assert int(observers(program)["act.observer"].seen) == seen


def test_the_lowest_entropy_goes_first() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.one, self.two = nn.ReLU(), nn.ReLU()
            self.b.bias.data.fill_(0.1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.two(self.b(self.one(self.a(x)))))

    program = watched(Two())
    seen = [o for o in observers(program).values() if isinstance(o, OnFraction)]
    entropies = [o.layer_entropy() for o in seen]
    result = run_pipeline(program, Linearize(eps=2.0, rise=1e6, loss=Loss()))
    order = [r.why for r in result.select("linearize", "applied")]
    assert [f"{e:.3g}" in why for e, why in zip(sorted(entropies), order, strict=True)] == [
        True
    ] * 2


def test_options_are_text_but_for_the_loss() -> None:
    assert str(fp.Pipeline([Linearize(eps=0.1, loss=Loss())])) == "linearize{eps=0.1}"
    assert not run_pipeline(shifted(nn.ReLU(), 50.0), "linearize").steps[0].checks
