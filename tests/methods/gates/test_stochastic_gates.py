"""Gates with learned probabilities: estimates against enumeration, and what a step must leave alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cache
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import fxprune as fp
from fxprune.errors import OptionError, PipelineError
from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.observe import observers
from fxprune.pipeline import run_pipeline
from fxprune.structure.blocks import find_blocks
from fxprune.testing.training import (
    ConvNet,
    Mlp,
    assert_same,
    captured,
    loss_of,
    make_batches,
    make_model,
)
from fxprune_passes.methods.gates.stochastic_gates import StochasticGates
from fxprune_passes.methods.gates.theta_gradients import Estimator
from fxprune_passes.methods.method import Loss

Tensor = torch.Tensor
ESTIMATORS: tuple[Estimator, ...] = ("two-pass", "score", "first-order", "trapezoid")


class Priced(StochasticGates):
    """Gates of one price each."""

    price = 0.02

    def costs(self) -> dict[str, Tensor]:
        return {p: torch.full_like(g.theta, self.price) for p, g in self.gates.items()}


class Four(nn.Module):
    """Four residual blocks."""

    dropout = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(self.dropout), nn.Linear(4, 3))
            for _ in range(4)
        )
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        found: Tensor = self.head(x)
        return found


class Affine(Four):
    """Its output is affine in each gate."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)) for _ in range(4)
        )


class Dropped(Four):
    """With dropout in each block."""

    dropout = 0.5


@cache
def captured_small(model: Callable[[], nn.Module]) -> Program:
    torch.manual_seed(0)
    return fp.capture(model().double().train(), torch.randn(4, 3).double())


def small(model: Callable[[], nn.Module]) -> Program:
    """Captured once; a copy for each use."""
    return copy.deepcopy(captured_small(model))


def make(program: Program, **options: Any) -> Any:
    optimizer = torch.optim.SGD(program.module.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)
    return Priced(fp.training.Shrinker(program, optimizer), **options)


def make_four(kind: Callable[[], nn.Module] = Four, **options: Any) -> tuple[Any, Loss]:
    program = small(kind)
    torch.manual_seed(0)
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    method = make(program, **options)
    for gate, theta in zip(method.gates.values(), (0.3, 0.8, 0.55, 0.9), strict=True):
        gate.set(theta)
    return method, lambda module: mse_loss(module(x), y)


def make_conv(**options: Any) -> tuple[Any, Loss]:
    (x, y), *_ = make_batches(ConvNet, 1)
    method = make(captured(ConvNet), **options)
    return method, loss_of(x, y)


def patterns(method: StochasticGates) -> Any:
    """Every pattern of the gates, set, with its probability."""
    found = list(method.gates.values())
    for bits in product((0.0, 1.0), repeat=len(found)):
        method.begin()
        weight = 1.0
        for gate, bit in zip(found, bits, strict=True):
            gate.sample.fill_(bit)
            theta = gate.theta.item()
            weight *= theta if bit else 1 - theta
        yield bits, weight


def true_gradient(method: StochasticGates, loss: Loss) -> Tensor:
    """E[J | xi_l = 1] - E[J | xi_l = 0] + c by enumeration."""
    thetas = [gate.theta.item() for gate in method.gates.values()]
    found = torch.zeros(4, dtype=torch.float64)
    for bits, _ in patterns(method):
        value = loss(method.module).item()
        for i, bit in enumerate(bits):
            others = [
                t if b else 1 - t
                for j, (t, b) in enumerate(zip(thetas, bits, strict=True))
                if j != i
            ]
            found[i] += (1 if bit else -1) * prod(others) * value
    return found + Priced.price


def expected_estimate(method: StochasticGates, loss: Loss, turns: int = 1) -> Tensor:
    """The mean of the method's estimate over all patterns, and over the turns of the gates."""
    found = torch.zeros(4, dtype=torch.float64)
    for _, weight in patterns(method):
        value = loss(method.module)
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]
        for _ in range(turns):
            estimate = method.gradient(value.detach(), loss)
            for i, path in enumerate(method.gates):
                if path in estimate:
                    found[i] += weight / turns * estimate[path].item()
    return found


def test_two_pass_is_unbiased() -> None:
    method, loss = make_four(pick="cyclic")
    expected = true_gradient(method, loss)
    assert (expected - Priced.price).abs().min() > 1e-3
    torch.testing.assert_close(expected_estimate(method, loss, 4), expected, rtol=0, atol=1e-13)


def test_two_pass_knows_the_ends() -> None:
    method, loss = make_four(pick="cyclic")
    for gate, theta in zip(method.gates.values(), (0.0, 1.0, 0.5, 1.0), strict=True):
        gate.set(theta)
    expected = true_gradient(method, loss)
    torch.testing.assert_close(expected_estimate(method, loss, 4), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_score_is_unbiased_with_any_baseline(baseline: float) -> None:
    method, loss = make_four(estimator="score")
    expected = true_gradient(method, loss)
    found = torch.zeros(4, dtype=torch.float64)
    for _, weight in patterns(method):
        method.gradients.baseline = torch.tensor(baseline).double()
        estimate = method.gradient(loss(method.module).detach(), loss)
        found += weight * torch.stack(list(estimate.values()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_score_leaves_the_price_at_the_ends_and_nothing_before_a_baseline() -> None:
    method, loss = make_four(estimator="score")
    for gate in method.gates.values():
        gate.set(1.0)
    method.begin()
    assert method.gradient(loss(method.module).detach(), loss) == {}
    estimate = method.gradient(loss(method.module).detach(), loss)
    assert [e.item() for e in estimate.values()] == [Priced.price] * 4


def test_first_order_is_exact_where_the_loss_is_affine_and_biased_elsewhere() -> None:
    method, curved = make_four(estimator="first-order")
    last = list(method.gates)[-1]

    def affine(module: nn.Module) -> Tensor:
        return module(torch.ones(1, 3).double()).sum()

    for loss, exact in ((affine, True), (curved, False)):
        expected, found = true_gradient(method, loss), expected_estimate(method, loss)
        # Affine in the last gate only: behind it nothing bends.
        at = list(method.gates).index(last)
        assert (abs(found[at] - expected[at]) < 1e-13) == exact
        assert (found - expected).abs()[:at].max() > 1e-3


def mean_slope(method: StochasticGates, loss: Loss, at: int) -> float:
    """(J'(0) + J'(1)) / 2 in one gate, by central differences and enumeration of the others."""
    gate, step, found = list(method.gates.values())[at], 1e-5, 0.0
    theta = gate.theta.item()
    for bits, weight in patterns(method):
        values = []
        for moved in (bits[at] - step, bits[at] + step):
            gate.sample.fill_(moved)
            values.append(loss(method.module).item())
        own = theta if bits[at] else 1 - theta
        found += weight / own * (values[1] - values[0]) / (2 * step) / 2
    return found


def test_the_trapezoid_estimates_the_mean_of_the_slopes_at_both_ends() -> None:
    method, loss = make_four(estimator="trapezoid")
    found = expected_estimate(method, loss)
    slopes = [mean_slope(method, loss, i) + Priced.price for i in range(4)]
    expected = torch.tensor(slopes, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_trapezoid_is_exact_where_the_loss_is_quadratic() -> None:
    method, loss = make_four(Affine, estimator="trapezoid")
    expected = true_gradient(method, loss)
    torch.testing.assert_close(expected_estimate(method, loss), expected, rtol=0, atol=1e-13)
    plain, loss = make_four(Affine, estimator="first-order")
    assert (expected_estimate(plain, loss) - expected).abs().max() > 1e-2


def test_the_trapezoid_at_the_ends_is_half_of_the_slope_that_is_drawn() -> None:
    for theta in (0.0, 1.0):
        found = {}
        for estimator in ("trapezoid", "first-order"):
            method, loss = make_four(estimator=estimator)
            for gate in method.gates.values():
                gate.set(theta)
            found[estimator] = expected_estimate(method, loss) - Priced.price
        torch.testing.assert_close(found["trapezoid"], found["first-order"] / 2)


class Normed(nn.Module):
    """A block that ends in a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x + self.block(x))
        return found


def test_the_slope_of_a_trained_block_behind_a_norm_is_blind() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3).double()
    classes = loss_of(x, (x[:, 0] * x[:, 1] > 0).long())
    program = run_pipeline(small(Normed), "insert-gates{kind=bernoulli}", verify=False).program
    weights = [p for n, p in program.module.named_parameters() if "gate" not in n]

    def loss(module: nn.Module) -> Tensor:
        """With weight decay: a separable task has no minimum."""
        return classes(module) + 1e-3 * torch.stack([w.square().sum() for w in weights]).sum()

    def closure() -> float:
        optimizer.zero_grad()
        loss(program.module).backward()  # type: ignore[no-untyped-call]
        return loss(program.module).item()

    optimizer = torch.optim.LBFGS(
        weights, max_iter=400, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )
    next(iter(gates(program).values())).draws = False
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = {}
    for estimator in ("first-order", "trapezoid", "two-pass"):
        method = make(copy.deepcopy(program), estimator=estimator)
        (gate,) = method.gates.values()
        gate.set(0.5)
        for drawn in (1.0, 0.0):
            method.begin()
            gate.sample.fill_(drawn)
            value = classes(method.module)
            value.backward()  # type: ignore[no-untyped-call]
            (estimate,) = method.gradient(value.detach(), classes).values()
            found[estimator, drawn] = estimate.item() - Priced.price
    assert found["two-pass", 1.0] < -0.3
    assert abs(found["first-order", 1.0]) < 0.05
    assert (found["trapezoid", 1.0] + found["trapezoid", 0.0]) / 2 < -0.15


@pytest.mark.parametrize("pick", ["random", "cyclic"])
def test_each_gate_has_its_turn(pick: Any) -> None:
    method, loss = make_four(pick=pick)
    asked = []
    for _ in range(40):
        method.begin()
        asked += method.gradient(loss(method.module).detach(), loss)
    counts = [asked.count(path) for path in method.gates]
    assert sum(counts) == 40
    assert counts == [10] * 4 if pick == "cyclic" else min(counts) >= 3


def test_between_measurements_thetas_move_by_running_means() -> None:
    method, classes = make_four(measure_every=3, rate=0.001)
    calls: list[int] = []

    def loss(module: nn.Module) -> Tensor:
        calls.append(method.steps)
        return classes(module)

    for step in range(9):
        before = {path: float(gate.theta) for path, gate in method.gates.items()}
        means = {path: float(mean) for path, mean in method.differences.means.items()}
        method.step(loss)
        moved = [(before[p] - float(g.theta)) / 0.001 for p, g in method.gates.items()]
        if step == 0:  # what is measured for the first time counts 3 times for each of 4 gates
            means = {p: 3 * 4 * float(m) + 11 * 0.02 for p, m in method.differences.means.items()}
        if step == 0 or step % 3:
            assert moved == pytest.approx([means.get(p, -0.02) + 0.02 for p in method.gates])
    assert calls == [0, 0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8]


def test_the_second_forward_sees_the_same_random_numbers() -> None:
    """Open or closed, branches that give 0 make no difference, if dropout and noise are the same."""
    method, _ = make_four(Dropped)
    for name, parameter in method.module.named_parameters():
        if ".3." in name:
            nn.init.zeros_(parameter)

    def loss(module: nn.Module) -> Tensor:
        noise = torch.randn(2, 3).double() + np.random.rand() + random.random()  # noqa: NPY002
        return mse_loss(module(noise), torch.rand(2, 2).double())

    for _ in range(8):
        method.begin()
        value = loss(method.module).detach()
        (estimate,) = method.gradient(value, loss).values()
        assert estimate.item() == 4 * Priced.price


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_learning_leaves_all_but_theta_as_it_was(estimator: Estimator) -> None:
    (x, y), *_ = make_batches(ConvNet, 1)
    program = captured(ConvNet)
    program = run_pipeline(program, "insert-observers", verify=False).program
    optimizer = torch.optim.SGD(program.module.parameters(), 0.05)
    method = Priced(fp.training.Shrinker(program, optimizer), estimator=estimator)

    def loss(module: nn.Module) -> Tensor:
        return cross_entropy(module(x) + torch.rand(3), y)

    def state() -> Any:
        thetas = {f"{p}.theta" for p in method.gates}
        tensors = {n: t.clone() for n, t in method.module.state_dict().items() if n not in thetas}
        found = observers(method.shrinker.program)
        weights = {n: p.grad for n, p in method.module.named_parameters() if n not in thetas}
        return tensors, weights, torch.get_rng_state(), [o.frozen for o in found.values()]

    for _ in range(3):
        method.begin()
        optimizer.zero_grad()
        value = loss(method.module)
        value.backward()  # type: ignore[no-untyped-call]
        before, thetas = state(), [g.theta.clone() for g in method.gates.values()]
        method.learn(value.detach(), loss)
        assert_same(state(), before)
    assert any((g.theta != t).any() for g, t in zip(method.gates.values(), thetas, strict=True))
    seen = {int(o.seen) for o in observers(method.shrinker.program).values()}
    assert max(seen) == 3 * 4 * 36


def test_thetas_stay_outside_of_the_optimizer() -> None:
    program = captured(ConvNet)
    program = run_pipeline(program, "insert-gates{kind=bernoulli}", verify=False).program
    optimizer = torch.optim.AdamW(program.module.named_parameters(), 0.01)
    method = Priced(fp.training.Shrinker(program, optimizer), estimator="first-order")
    held = {p for g in optimizer.param_groups for p in g["params"]}
    assert len(held) == len(list(program.module.parameters())) - 2
    assert all(len(g["params"]) == len(g["param_names"]) for g in optimizer.param_groups)
    assert not held & {g.theta for g in method.gates.values()}
    assert [g.theta.item() for g in method.gates.values()] == [1.0, 1.0]  # as they were


def test_thetas_stay_between_0_and_1() -> None:
    method, loss = make_conv(rate=50.0, theta_tol=1e-9)
    for _ in range(20):
        method.step(loss)
        assert all(0 <= g.theta.item() <= 1 for g in method.gates.values())
    assert {g.theta.item() for g in method.gates.values()} <= {0.0, 1.0}


def test_all_blocks_may_go_and_training_goes_on() -> None:
    method, loss = make_conv()
    method.step(loss)
    for gate in method.gates.values():
        gate.set(1e-3)
    (change,) = method.end_epoch()
    assert {n.split(".")[0] for n in change.left} == {"blocks"}
    assert len(change.left) == 12
    assert method.gates == {}
    for _ in range(2):
        method.step(loss)
    assert method.end_epoch() == []
    assert method.numbers() == {"gates": 0.0, "undecided": 0.0, "last_removal": 1.0}


def test_gates_settle_at_1_and_others_at_1_stay() -> None:
    method, loss = make_conv(keep_after=2, rate=1e-12)
    first, second = method.gates
    for values, left in (((1.0, 0.5), 2), ((1.0, 1.0), 1), ((None, 1.0), 0)):
        for path, value in zip((first, second), values, strict=True):
            if path in method.gates:
                method.gates[path].set(value)
        method.price = -1.0  # keeps what is at 1 there
        method.step(loss)
        changes = method.end_epoch()
        assert len(method.gates) == left
        assert len(changes) == (left < 2)
    assert len(find_blocks(method.shrinker.program)) == 2


def test_a_gate_at_1_stays_where_another_closes() -> None:
    method, loss = make_conv(rate=1e-12)
    first, second = method.gates
    method.price = -1.0
    method.gates[first].set(1.0)
    method.gates[second].set(0.001)
    method.step(loss)
    assert len(method.end_epoch()) == 1
    assert list(method.gates) == [first]


def test_the_last_draw_does_not_matter_to_a_removal() -> None:
    method, _ = make_conv(keep_after=1)
    for gate, (theta, sample) in zip(method.gates.values(), ((1e-3, 1.0), (1.0, 0.0)), strict=True):
        gate.theta.data.fill_(theta)
        gate.sample.fill_(sample)
    method.finish()
    (change,) = method.end_epoch()  # verified
    assert {n.split(".")[1] for n in change.left} == {"0"}
    assert method.gates == {}


def test_removal_between_steps() -> None:
    method, loss = make_conv(remove_every=2, rate=1e-12)
    next(iter(method.gates.values())).set(0.001)
    method.step(loss)
    assert len(method.gates) == 2
    method.step(loss)
    assert len(method.gates) == 1
    method.step(loss)
    assert len(method.end_epoch()) == 1


def test_a_removal_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    method, loss = make_conv(rate=1e-12)
    method.step(loss)
    path, gate = next(iter(method.gates.items()))
    gate.set(0.004)
    before = gate.theta.item(), gate.sample.item()

    def fail(*_: Any, **__: Any) -> None:
        raise PipelineError("no", program=None, failed="delete-gated")

    monkeypatch.setattr(method.shrinker, "run", fail)
    with pytest.raises(PipelineError):
        method.end_epoch()
    assert (method.gates[path].theta.item(), method.gates[path].sample.item()) == before


class Twice(nn.Module):
    """One residual module called twice, and a block inside the branch of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.enter, self.inner, self.leave = (nn.Linear(3, 3) for _ in range(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shared(x)
        x = x + self.shared(x)
        y = torch.tanh(self.enter(x))
        y = y + torch.tanh(self.inner(y))
        found: Tensor = self.head(x + self.leave(y))
        return found


@pytest.mark.parametrize("closed", range(4))
def test_shared_and_nested_blocks(closed: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(5, 3).double(), torch.randint(2, (5,))
    method = make(small(Twice), rate=1e-12)
    assert len(method.gates) == 4
    for _ in range(2):
        method.step(loss_of(x, y))
    path = list(method.gates)[closed]
    method.gates[path].set(0.001)
    assert len(method.end_epoch()) == 1
    assert path not in method.gates
    assert len(method.gates) in (2, 3)
    method.step(loss_of(x, y))
    for gate in method.gates.values():
        gate.set(0.0)
    method.end_epoch()
    assert not any("shared" in n or "leave" in n for n in method.module.state_dict())


def test_without_shortcuts_there_is_nothing_to_gate() -> None:
    (x, y), *_ = make_batches(Mlp, 1)
    model = make_model(Mlp)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    shrinker = fp.training.Shrinker(model, optimizer, args=x)
    with pytest.raises(fp.training.TrainingError, match="insert-skips"):
        Priced(shrinker)
    shrinker.run("insert-skips")
    method = Priced(shrinker)
    method.step(loss_of(x, y))
    for gate in method.gates.values():
        gate.set(0.0)
    method.end_epoch()
    assert "two.weight" not in method.module.state_dict()
    assert method.step(loss_of(x, y)).isfinite()


def test_eval_mode_is_refused() -> None:
    method, loss = make_conv()
    method.module.eval()
    with pytest.raises(fp.training.TrainingError, match="eval"):
        method.step(loss)
    method.module.train()
    method.step(loss)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    method, loss = make_conv()
    before = {n: t.clone() for n, t in method.module.named_parameters()}
    with pytest.raises(fp.training.TrainingError, match="nan"):
        method.step(lambda module: loss(module) * float("nan"))
    calls = iter((1.0, float("inf")))
    with pytest.raises(fp.training.TrainingError, match="flipped is not finite"):
        method.step(lambda module: loss(module) * next(calls))
    assert_same(before, dict(method.module.named_parameters()))


def test_half_precision_weights() -> None:
    """The other estimators in test_interface.py."""
    (x, y), *_ = make_batches(ConvNet, 1)
    half = x.bfloat16()
    method = make(fp.capture(make_model(ConvNet).bfloat16(), half), estimator="score")
    for _ in range(3):
        method.step(lambda module: cross_entropy(module(half).float(), y))
    assert {g.theta.dtype for g in method.gates.values()} == {torch.float32}
    assert any(g.theta.item() != pytest.approx(0.9, abs=1e-7) for g in method.gates.values())


def test_a_gradient_scaler_does_not_scale_the_steps() -> None:
    found = []
    for scale in (1.0, 1024.0):
        (x, y), *_ = make_batches(ConvNet, 1)
        program = captured(ConvNet)
        optimizer = torch.optim.SGD(program.module.parameters(), 0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        shrinker = fp.training.Shrinker(program, optimizer, scaler=scaler)
        method = Priced(shrinker, estimator="first-order")
        method.begin()
        value = cross_entropy(method.module(x), y)
        scaler.scale(value).backward()  # type: ignore[no-untyped-call]
        method.learn(value.detach(), lambda _: pytest.fail("asks for another loss"))
        found.append([g.theta.item() for g in method.gates.values()])
    assert found[0] == found[1] != [0.9, 0.9]


def test_going_on_when_all_gates_are_gone() -> None:
    method, loss = make_conv(keep_after=1)
    for gate in method.gates.values():
        gate.set(1.0)
    method.price = -1.0
    method.step(loss)
    method.end_epoch()
    assert method.gates == {}
    again = Priced(method.shrinker, insert=False)
    again.load_state_dict(method.state_dict())
    assert again.gates == {}


@pytest.mark.parametrize(
    "options",
    [{"rate": 0.0}, {"theta_tol": 0.0}, {"start": 1.5}, {"keep_after": 0}, {"remove_every": -1}],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        make_conv(**options)


def test_gates_of_the_program_are_those_of_the_method() -> None:
    method, _ = make_conv()
    assert method.gates.keys() == gates(method.shrinker.program).keys()
    assert not any(g.draws for g in method.gates.values())
