"""Tests of fxprune.capture.functions: the gradients of what is captured are those of the model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune as fp
from fxprune.capture.functions import Functions
from fxprune.errors import CaptureError
from fxprune.verify import compare_gradients

APPLY = vars(torch.autograd.Function)["apply"]


class Sign(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Reversed(torch.autograd.Function):
    """Turns gradients round; the scale is an argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * g, None


class Two(torch.autograd.Function):
    """Several inputs and outputs, one without a gradient."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * y, x > 0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return 3 * g * y, g * x


class Flip(torch.autograd.Function):
    """Reverses its last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.flip(-1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g.flip(-1)


class Net(nn.Module):
    """Calls something on the values between two layers."""

    def __init__(self, between: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.between(self, self.a(x)))


def two(net: Net, x: Tensor) -> Tensor:
    y, positive = Two.apply(x, net.b(x))
    return y * positive


def teacher(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.b(x)
    return x * y


def written(x: Tensor) -> Tensor:
    x.data.mul_(2)
    return x


def hooked(_: Net, x: Tensor) -> Tensor:
    y = x.relu()
    if y.requires_grad:
        y.register_hook(lambda g: g * 2)  # type: ignore[no-untyped-call]
    return y


# Looked up before any capture: what they call is torch's own `apply`.
sign, reverse, multiply = Sign.apply, Reversed.apply, Two.apply


def two_before(net: Net, x: Tensor) -> Tensor:
    y, positive = multiply(x, net.b(x))
    return y * positive


KEPT: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "sign": lambda _, x: Sign.apply(x),
    "twice": lambda _, x: Sign.apply(x) + x * Sign.apply(x),
    "reversed": lambda _, x: Reversed.apply(x, 0.5),
    "two": two,
    "flip": lambda _, x: Flip.apply(x),
    "sign, looked up before": lambda _, x: sign(x),
    "reversed, looked up before": lambda _, x: reverse(x, 0.5),
    "two, looked up before": two_before,
    "teacher": teacher,
    "straight through": lambda _, x: x + (x.sign() - x).detach(),
    "data": lambda net, x: x * x.data + net.b(x).data + net.b(x),
    "data of a weight": lambda net, x: nn.functional.linear(x, net.b.weight.data) + net.b(x),
    "written data": lambda net, x: written(net.b(x)),
    "reentrant": lambda net, x: checkpoint(net.b, x.relu(), use_reentrant=True),
    "not reentrant": lambda net, x: checkpoint(net.b, x.relu(), use_reentrant=False),
    "in a checkpoint": lambda net, x: checkpoint(lambda y: Sign.apply(net.b(y)), x),
}


def gradients(module: nn.Module, model: nn.Module, x: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    module(x).pow(2).sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.filterwarnings("ignore:.*use_reentrant")
@pytest.mark.parametrize("name", KEPT)
def test_a_program_captured_in_train_mode_has_the_models_gradients(name: str) -> None:
    model, x = Net(KEPT[name]).train(), torch.randn(3, 8)
    program = fp.capture(model, x)
    found, wanted = gradients(program.module, model, x), gradients(model, model, x)
    torch.testing.assert_close(found, wanted)
    assert program.free_batch
    assert not program.remarks
    ((check,), _) = compare_gradients(model, program)
    assert check.ok


WITHOUT: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "detached": lambda net, x: checkpoint(net.b, x.detach(), use_reentrant=True) + net.b(x),
    "listed": lambda net, x: checkpoint(lambda xs: net.b(xs[0]), [x], use_reentrant=True) + x,
    "one of two": lambda net, x: (
        checkpoint(net.b, checkpoint(net.b, x.detach(), use_reentrant=True), use_reentrant=True)
        + checkpoint(net.b, x, use_reentrant=True)
    ),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", WITHOUT)
def test_a_checkpoint_without_a_gradient_gives_none(name: str, training: bool) -> None:
    model, x = Net(WITHOUT[name]).train(training), torch.randn(3, 8)
    program = fp.capture(model, x)
    assert program.free_batch
    torch.testing.assert_close(gradients(program.module, model, x), gradients(model, model, x))
    assert {r.code for r in program.remarks} == {"capture.no-gradient"}
    assert "use_reentrant=False" in program.remarks[0].do
    ((check,), _) = compare_gradients(model, program)
    assert check.ok


@pytest.mark.parametrize(
    ("name", "pruned"),
    [("sign", True), ("reversed", True), ("flip", False), ("sign, looked up before", True)],
)
def test_only_a_pointwise_function_lets_units_through(name: str, pruned: bool) -> None:
    model, x = Net(KEPT[name]).train(), torch.randn(3, 8)
    groups = fp.groups(fp.capture(model, x))
    assert any(m.param == "a.weight" for g in groups for m in g.members) is pruned
    in_eval = fp.capture(model.eval(), x)
    (remark,) = in_eval.remarks
    assert remark.code == "capture.backward-dropped"
    assert KEPT[name].__code__.co_filename in remark.where


@pytest.mark.parametrize("training", [True, False])
def test_a_hook_on_a_gradient_is_named(training: bool) -> None:
    model, x = Net(hooked).train(training), torch.randn(3, 8)
    (remark,) = fp.capture(model, x).remarks
    assert "a hook on the gradient of a tensor in Net" in remark.where


def test_functions_are_as_before_after_a_capture_that_failed() -> None:
    def fails(_: Net, x: Tensor) -> Tensor:
        assert vars(torch.autograd.Function)["apply"] is not APPLY
        assert vars(Sign)["forward"] is not before
        raise ZeroDivisionError

    before = vars(Sign)["forward"]

    with pytest.raises(CaptureError):
        fp.capture(Net(fails), torch.randn(3, 8))
    assert vars(torch.autograd.Function)["apply"] is APPLY
    assert vars(Sign)["forward"] is before


def test_another_thread_calls_functions_as_ever() -> None:
    x, functions = torch.ones(2, requires_grad=True), Functions("Net", keep=False)
    with functions.observed():
        thread = threading.Thread(target=lambda: (Sign.apply(x) + sign(x)).sum().backward())
        thread.start()
        thread.join()
    assert x.grad is not None
    assert not functions.remarks()


@torch.library.custom_op("fxprune_test::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


doubled.register_fake(torch.empty_like)
doubled.register_autograd(lambda ctx, g: 3 * g)


@pytest.mark.parametrize("training", [True, False])
def test_the_backward_of_an_operator_is_the_operators(training: bool) -> None:
    model, x = Net(lambda net, x: net.b(x) + doubled(x)).train(training), torch.randn(3, 8)
    program = fp.capture(model, x)
    assert not program.remarks
    assert any("doubled" in str(n.target) for n in program.nodes)
    torch.testing.assert_close(gradients(program.module, model, x), gradients(model, model, x))


def test_sparse_gradients_are_compared() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(9, 8, sparse=True), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.words(ids))

    outcome = fp.prune(Words().train(), torch.randint(0, 9, (2, 5)), keep=0.6)
    assert all(check.ok for check in outcome.report.checks)
