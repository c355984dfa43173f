"""Tests of buffers that a network's operators write to, such as those of spectral norm."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm

import fxprune as fp

NORMS: dict[str, Any] = {"new": parametrizations.spectral_norm, "old": old_spectral_norm}
Norm = Callable[[nn.Module], nn.Module]


@pytest.fixture(params=[*NORMS])
def norm(request: pytest.FixtureRequest) -> Norm:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return NORMS[request.param]


def network(norm: Any) -> nn.Sequential:
    return nn.Sequential(norm(nn.Linear(6, 16)), nn.ReLU(), norm(nn.Linear(16, 2)))


def _vectors(module: nn.Module) -> dict[str, Tensor]:
    names = ("_u", "_v")
    return {n: t.clone() for n, t in module.named_buffers() if n.endswith(names)}


class Out(nn.Module):
    """Writes its activations' mean to a buffer, which scales the next activations."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("mean", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        torch.add(self.mean * 0.9, y.detach().mean(0), alpha=0.1, out=self.mean)
        return self.last(y * self.mean.clone())


@pytest.mark.filterwarnings("error")
def test_power_iteration_is_cut_with_its_weight(norm: Norm) -> None:
    model, x = network(norm).train(), torch.randn(5, 6)
    small = fp.prune(model, x, keep=0.5).program
    sizes = {name: t.shape for name, t in small.tensors().items()}
    small(x)
    assert sizes == {name: t.shape for name, t in small.tensors().items()}
    rows = {t[0] for name, t in sizes.items() if name.startswith("0.") and t != (6,)}
    assert len(rows) == 1
    assert rows != {16}


@pytest.mark.parametrize("training", [True, False])
def test_power_iteration_is_that_of_the_mode(norm: Norm, training: bool) -> None:
    model, x = network(norm).train(training), torch.randn(5, 6)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    program = fp.capture(model, x)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    found, after = program(x), {name: t.clone() for name, t in program.tensors().items()}
    model.load_state_dict(state)
    assert torch.equal(found, model(x))
    assert all(torch.equal(t, after[name]) for name, t in model.state_dict().items())
    (remark,) = program.remarks
    assert remark.code == "capture.mode-fixed"
    how = "at every call" if training else "never"
    assert f"the power iteration of spectral norm runs {how}" in remark.why
    module = program.module.train(not training)
    estimate, given = _vectors(module), torch.randn(5, 6)
    module(given)
    changes = any(not torch.equal(t, estimate[n]) for n, t in _vectors(module).items())
    assert changes is training


def test_a_buffer_given_as_out_is_cut_with_what_is_written() -> None:
    model, x = Out(), torch.randn(5, 4)
    program = fp.capture(model, x)
    before = model.mean.clone()
    outcome = fp.prune(program, keep=0.5)
    assert outcome.program.tensors()["mean"].shape == outcome.program.tensors()["first.bias"].shape
    program(x)
    wanted = 0.9 * before + 0.1 * model.first(x).mean(0)
    torch.testing.assert_close(program.tensors()["mean"], wanted)
