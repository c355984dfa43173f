"""Tests of fxprune.graph.gate: values, gradients, samples, types, compilation, copies."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.graph.gate import Gate, gate_nodes, gates
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline

KINDS = ("hard", "soft", "bernoulli")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_gates_of_one_change_nothing(kind: str, training: bool) -> None:
    gate = Gate(3, kind).train(training)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 5)
    assert torch.equal(gate(x, 1), x)


def test_each_kind_multiplies_by_its_values() -> None:
    x, theta = torch.ones(4, 3), torch.tensor([0.2, 0.6, 1.0])
    wanted = {"hard": torch.tensor([0.0, 1.0, 1.0]), "soft": theta, "bernoulli": theta}
    for kind, values in wanted.items():
        gate = Gate(3, kind).eval()  # type: ignore[arg-type]
        gate.set(theta)
        torch.testing.assert_close(gate(x, 1), values.expand(4, 3))
        torch.testing.assert_close(gate.settled(), values)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_straight_through(kind: str) -> None:
    gate = Gate(3, kind)  # type: ignore[arg-type]
    x = torch.randn(2, 3)
    gate(x, 1).sum().backward()
    torch.testing.assert_close(gate.theta.grad, x.sum(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_of_one_gate_on_all_of_a_value(dtype: torch.dtype) -> None:
    gate = Gate(None, "soft").to(torch.float64)
    gate.set(0.3)
    x = torch.randn(2, 3, 4, dtype=dtype).mT.requires_grad_()
    weights = torch.randn(2, 4, 3, dtype=dtype)
    (gate(x) * weights).sum().backward()
    assert gate.theta.grad is not None
    expected = (x * weights).double().sum()
    torch.testing.assert_close(
        gate.theta.grad, expected, rtol=0, atol=1e-1 if dtype.itemsize == 2 else 1e-12
    )
    torch.testing.assert_close(x.grad, weights * gate.theta.to(dtype))


@pytest.mark.parametrize(
    ("shape", "axis"), [((3,), 0), ((3, 5), 0), ((70, 3), -1), ((70, 6, 40, 40), 1), ((0, 3), 1)]
)
def test_gradients_of_unit_gates_are_those_of_the_product(
    shape: tuple[int, ...], axis: int
) -> None:
    gate = Gate(3, "soft").double()
    gate.set(torch.tensor([0.2, 0.5, 1.0]))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(shape, dtype=torch.float64)
    (gate(x, axis) * weights).sum().backward()
    theta = gate.theta.detach().clone().requires_grad_()
    along = theta.repeat_interleave(shape[axis] // 3)
    twin = x.detach().clone().requires_grad_()
    (twin.movedim(axis, -1) * along * weights.movedim(axis, -1)).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(gate.theta.grad, theta.grad, rtol=0, atol=1e-10)
    assert torch.equal(x.grad, twin.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("drawn", [0.0, 1.0])
def test_gradients_at_what_was_drawn(drawn: float, axis: int | None) -> None:
    gate = Gate(axis, "bernoulli").train()
    gate.draws = False
    gate.sample.fill_(drawn)
    x = torch.randn(3, 4, requires_grad=True)
    y = gate(x, axis)
    y.sin().sum().backward()
    assert torch.equal(y, x * drawn)
    assert gate.theta.grad is not None
    torch.testing.assert_close(x.grad, (x * drawn).cos() * drawn)
    wanted = ((x * drawn).cos() * x).sum()
    torch.testing.assert_close(gate.theta.grad, wanted.reshape(gate.theta.shape))


@pytest.mark.parametrize(("size", "axis"), [(None, None), (5, 1)])
def test_gates_have_second_derivatives_and_work_in_functions(
    size: int | None, axis: int | None
) -> None:
    gate = Gate(size, "soft").double()
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    theta = torch.full(gate.theta.shape, 0.4, dtype=torch.float64, requires_grad=True)

    def run(theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(gate, {"theta": theta}, (x, axis))

    assert torch.autograd.gradgradcheck(run, (theta, x))
    slopes = torch.func.vmap(torch.func.grad(lambda x: run(theta, x).sum()))(x[None])
    torch.testing.assert_close(slopes, theta.expand(1, 2, 5))


def test_a_sample_holds_for_the_batch_and_for_every_place_of_a_step() -> None:
    torch.manual_seed(0)
    gate = Gate(64, "bernoulli").train()
    gate.set(0.5)
    first = gate(torch.ones(5, 64), 1)
    again = gate(torch.ones(64, 2), 0, False)
    assert torch.equal(first, first[:1].expand(5, 64))
    assert torch.equal(again[:, 0], first[0])
    assert 0 < first[0].sum() < 64
    assert not torch.equal(gate(torch.ones(5, 64), 1), first)


def test_a_gate_that_does_not_draw_uses_the_sample_it_was_given() -> None:
    gate = Gate(2, "bernoulli").train()
    gate.set(0.5)
    gate.draws = False
    gate.sample.copy_(torch.tensor([1.0, 0.0]))
    assert torch.equal(gate(torch.ones(3, 2), 1), torch.tensor([1.0, 0.0]).expand(3, 2))


def test_score_function_gradient_is_that_of_the_expectation() -> None:
    """E[f(xi) d log p / d theta] over all patterns is d E[f] / d theta."""
    gate = Gate(3, "bernoulli", "score")
    theta = torch.tensor([0.3, 0.8, 0.5])
    gate.set(theta)

    def value(pattern: torch.Tensor) -> torch.Tensor:
        return (pattern * torch.tensor([1.0, 2.0, -3.0])).sum() ** 2

    estimate = torch.zeros(3)
    free = theta.clone().requires_grad_()
    expected = torch.zeros(())
    for bits in itertools.product((0.0, 1.0), repeat=3):
        pattern = torch.tensor(bits)
        gate.sample.copy_(pattern)
        (slope,) = torch.autograd.grad(gate.log_probability(), gate.theta)
        weight = (free * pattern + (1 - free) * (1 - pattern)).prod()
        estimate += weight.detach() * value(pattern) * slope
        expected = expected + weight * value(pattern)
    (wanted,) = torch.autograd.grad(expected, free)
    torch.testing.assert_close(estimate, wanted)
    assert not gate(torch.ones(1, 3), 1).requires_grad


def test_log_probability_at_the_ends_is_finite() -> None:
    gate = Gate(2, "bernoulli")
    gate.set(torch.tensor([0.0, 1.0]))
    gate.log_probability().backward()  # type: ignore[no-untyped-call]
    assert gate.theta.grad is not None
    assert torch.equal(gate.theta.grad, torch.zeros(2))


def test_bfloat16_values_stay_so() -> None:
    gate = Gate(3, "soft")
    assert gate(torch.ones(2, 3, dtype=torch.bfloat16), 1).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def gated(residual: nn.Module) -> Program:
    """Of a copy: training it writes to what it shares with the model."""
    program = fp.capture(copy.deepcopy(residual), torch.randn(2, 3, 8, 8))
    text = "insert-gates{kind=bernoulli} | insert-gates{scope=unit kind=soft}"
    return run_pipeline(program, text).program


def test_a_gated_program_trains_compiles_and_keeps_its_state(gated: Program) -> None:
    x = torch.randn(2, 3, 8, 8)
    module = gated.train().module
    torch.manual_seed(0)
    loss = module(x).square().mean()
    loss.backward()
    assert all(g.theta.grad is not None for g in gates(gated).values())
    torch.manual_seed(0)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x).square().mean(), loss)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    assert {"one.gate.theta", "one.gate.sample"} <= state.keys()
    module.load_state_dict(state)
    gated.eval()


def test_units_of_a_gate_go_with_its_axis(gated: Program) -> None:
    path = next(p for p, g in gates(gated).items() if g.theta.numel() == 24)
    plan = fp.plan(gated, {"one.0.weight": (0, [1, 5, 7])})
    small = fp.shrink(gated, plan)
    assert fp.verify(gated, plan, small).ok
    assert gates(small)[path].theta.shape == gates(small)[path].sample.shape == (21,)
    assert gates(gated)[path].theta.shape == (24,)


def test_gates_are_found_in_order_with_their_places(gated: Program) -> None:
    assert list(gates(gated)) == list(gate_nodes(gated))
    assert {"one.gate", "two.gate"} <= gates(gated).keys()
