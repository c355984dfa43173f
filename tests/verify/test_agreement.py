"""Tests of fxprune.verify.agreement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.errors import VerifyError
from fxprune.verify import check_capture, compare_model


class Net(nn.Module):
    """Writes a buffer, drops out, keeps a list; its head is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.drop = nn.Dropout()
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.drop(self.norm(self.first(x)).relu()))
        return y + torch.rand_like(y)


@pytest.mark.parametrize("training", [True, False])
def test_a_program_agrees_with_its_model_which_stays_as_it_is(training: bool) -> None:
    model, x = Net().train(training), torch.randn(3, 4)
    program = fp.capture(model, x)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    check = compare_model(model, program)
    assert check.ok
    assert check.max_relative_error == 0
    assert check.batches == (3, 4)
    assert model.training == program.module.training == training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_what_zeros_would_hide_is_seen() -> None:
    model, x = Net().eval(), torch.randn(3, 4)
    program = fp.capture(model, x)
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    node.target = torch.ops.aten.tanh.default
    program.module.recompile()
    assert not compare_model(model, program).ok
    with pytest.raises(VerifyError, match="what was captured differs from the model in output 0"):
        check_capture(model, program)


def test_prune_says_that_it_compared() -> None:
    silenced = "the silenced original"
    report = fp.prune(Net().eval(), torch.randn(3, 4), verify="full").report
    assert [c.against for c in report.checks] == [silenced, "the model"]
    again = fp.prune(fp.capture(Net().eval(), torch.randn(3, 4))).report
    assert [(c.against, c.dtype) for c in again.checks] == [
        (silenced, "float64"),
        (silenced, "float32"),
    ]
    assert again.checks[0].regions


def test_a_model_of_one_batch_is_compared_at_that() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            if x.shape[0] not in (2, 103):
                raise ValueError("another batch")
            return self.b(self.a(x))

    model = Fixed()
    program = fp.capture(model, torch.randn(2, 4))
    assert compare_model(model, program).batches == (2,)


def test_a_model_that_does_not_run_is_remarked() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            if type(x) is Tensor and not torch.compiler.is_compiling():
                raise ValueError("no numbers here")
            return self.b(self.a(x))

    outcome = fp.prune(Once(), torch.randn(2, 4))
    (remark,) = (r for r in outcome.remarks if r.code == "verify.model-not-run")
    assert "no numbers here" in remark.why
    result = fp.run(Once(), torch.randn(2, 4), "dead-code")
    assert "verify.model-not-run" in {r.code for r in result.program.remarks}


def test_a_program_that_does_not_run_where_its_model_does_is_an_error() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    program = fp.capture(model, x)
    node = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[1]
    node.args = (program.graph.find_nodes(op="placeholder")[0], *node.args[1:])
    program.module.recompile()
    with pytest.raises(VerifyError, match=r"the program does not run .* on which the model does"):
        check_capture(model, program)


def test_other_precisions() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(torch.bfloat16)
    check = compare_model(model, fp.capture(model, torch.randn(3, 4, dtype=torch.bfloat16)))
    assert (check.dtype, check.tolerance, check.ok) == ("bfloat16", 5e-2, True)
