"""Tests of fxprune.graph.lean: what runs is what the graph says, with the gradients that it has, and with less."""

from __future__ import annotations

import copy
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import fxprune as fp
from fxprune.graph.gate import gates
from fxprune.graph.lean import lean_graph
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline

GATES = {
    "block": "insert-gates",
    "unit": "insert-gates{scope=unit kind=bernoulli}",
    "score": "insert-gates{kind=bernoulli estimator=score}",
    "both": "insert-gates{scope=unit kind=soft} | insert-gates{kind=bernoulli estimator=score}",
}


@pytest.fixture
def given(residual: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return copy.deepcopy(residual).double().train(), torch.randn(2, 3, 8, 8, dtype=torch.float64)


def _step(program: Program, x: Tensor, *, flat: bool) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The output and the gradients of a training step, of the graph itself or of its lean form."""
    with patch.object(lean_graph, "is_watched", lambda *_: flat):
        out = program(x)
    out.square().mean().backward()
    return out.detach(), {n: p.grad for n, p in program.module.named_parameters()}


@pytest.mark.parametrize("drawn", [0.0, 1.0])
@pytest.mark.parametrize("kind", GATES)
def test_outputs_and_gradients_are_those_of_the_graph(
    kind: str, drawn: float, given: tuple[nn.Module, Tensor]
) -> None:
    model, x = given
    program = run_pipeline(fp.capture(model, x), GATES[kind]).program.train()
    for gate in gates(program).values():
        gate.draws = False
        some = torch.arange(gate.theta.numel()).view(gate.theta.shape) % 2
        gate.set(some.double() if gate.theta.dim() else drawn)
    twin = program.copy()
    (out, slopes), (wanted, graph_slopes) = (
        _step(program, x, flat=False),
        _step(twin, x, flat=True),
    )
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    assert slopes.keys() == graph_slopes.keys()
    for name, slope in graph_slopes.items():
        if slope is None:
            assert slopes[name] is None, name
        else:
            torch.testing.assert_close(slopes[name], slope, rtol=1e-9, atol=1e-9)


def test_a_closed_branch_sees_no_batch_and_its_parameters_have_gradients_of_0(
    given: tuple[nn.Module, Tensor],
) -> None:
    model, x = given
    program = run_pipeline(fp.capture(model, x), GATES["score"]).program.train()
    found = gates(program)
    for gate in found.values():
        gate.draws = False
    found["two.gate"].sample.fill_(0)
    before = {
        n: b.clone()
        for n, b in program.module.named_buffers()
        if n.startswith("two.") and "gate" not in n
    }
    _, slopes = _step(program, x, flat=False)
    assert before
    inside = [s for n, s in slopes.items() if n.startswith("two.") and "gate" not in n]
    assert inside
    assert all(s is not None and not s.any() for s in inside)
    assert all(torch.equal(program.module.get_buffer(n), b) for n, b in before.items())


def test_compiled_it_is_one_graph_for_all_draws(given: tuple[nn.Module, Tensor]) -> None:
    model, x = given
    program = run_pipeline(fp.capture(model, x), GATES["both"]).program.train()
    for gate in gates(program).values():
        gate.set(0.5)
    counter = CompileCounter()
    torch.compiler.reset()
    compiled = torch.compile(program.module, backend=counter)
    outputs = set()
    for seed in range(6):
        torch.manual_seed(seed)
        for gate in gates(program).values():
            gate.draws = False
            if gate.kind == "bernoulli":
                gate.draw()
        out = compiled(x)
        out.square().mean().backward()
        outputs.add(float(out.detach().square().mean()))
    assert counter.frame_count == 1
    assert len(outputs) > 1
