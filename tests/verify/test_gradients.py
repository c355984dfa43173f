"""Tests of fxprune.verify.gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune as fp
from fxprune.errors import VerifyError
from fxprune.training import Shrinker
from fxprune.verify import compare_gradients


class Net(nn.Module):
    """Layers with a norm, dropout and a branch without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.drop(self.norm(self.first(x)))
        return self.last(y.relu()), y.argmax(-1)


class Doubled(Net):
    """Doubles the gradient of its first layer by a hook."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        if y.requires_grad:
            y.register_hook(lambda g: 2 * g)
        return self.last(self.norm(y)), x.argmax(-1)


class Quirk(Net):
    """A reentrant checkpoint of a layer whose input needs no gradient trains nothing in it."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.last(checkpoint(self.first, x, use_reentrant=True))
        return y, y.argmax(-1)


def test_gradients_agree_and_everything_stays_as_it_is() -> None:
    model, x = Net().train(), torch.randn(3, 4, requires_grad=True)
    program = fp.capture(model, x)
    before, drawn = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    (check,), remarks = compare_gradients(model, program)
    assert check.ok
    assert check.max_relative_error == 0
    assert not remarks
    assert all(p.grad is None for p in (*model.parameters(), x))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_another_gradient_is_an_error_that_names_the_layer() -> None:
    model, x = Doubled().train(), torch.randn(3, 4)
    for refused in (lambda: fp.prune(model, x), lambda: fp.run(model, x, "dead-code")):
        with pytest.raises(VerifyError, match=r"the gradient of first\.(weight|bias)"):
            refused()
    with pytest.raises(VerifyError, match="a hook on the gradient of a tensor in Doubled"):
        Shrinker(model.eval(), torch.optim.SGD(model.parameters(), 0.1), args=x)


def test_a_layer_that_trains_in_neither_agrees() -> None:
    with pytest.warns(UserWarning, match="None"):
        outcome = fp.prune(Quirk().train(), torch.randn(3, 4), keep=0.8)
    assert any(r.code == "capture.no-gradient" for r in outcome.remarks)


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_no_gradient_is_not_a_small_one() -> None:
    program = fp.capture(model := Quirk().train(), torch.randn(3, 4))
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.detach.default):
        node.replace_all_uses_with(node.args[0])
    program.module.recompile()
    with pytest.raises(VerifyError, match=r"first\.(weight|bias)"):
        compare_gradients(model, program)


def test_a_dropped_detach_is_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).train()
    program = fp.capture(model, torch.randn(3, 4))
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.tanh.default)
    with program.graph.inserting_after(node):
        cut = program.graph.call_function(torch.ops.aten.detach.default, (node,))
    node.replace_all_uses_with(cut, delete_user_cb=lambda user: user is not cut)
    program.module.recompile()
    with pytest.raises(VerifyError, match=r"the gradient of 0\.(weight|bias)"):
        compare_gradients(model, program)


def test_a_model_without_a_backward_leaves_a_remark() -> None:
    model = Net().train()
    program = fp.capture(model, torch.randn(3, 4))
    model.forward = lambda x: 1 / 0  # type: ignore
    _, (remark,) = compare_gradients(model, program)
    assert remark.code == "verify.backward-not-run"
