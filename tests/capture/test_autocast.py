"""Regions under autocast become calls that make the same casts."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune as fp
from fxprune.capture.autocast import NoCastError, spell_casts
from fxprune.errors import VerifyError
from fxprune.graph.program import Program

Function = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A part of it runs under autocast."""

    def __init__(self, inner: Function) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 12, 3), nn.BatchNorm1d(12)
        self.wide, self.out, self.inner = nn.Linear(6, 16), nn.Linear(16, 4), inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.inner(self, self.norm(self.conv(x)).relu())
        return self.out(x.float())


def plain(net: Net, x: Tensor) -> Tensor:
    return net.wide(x).relu()


def nested(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return net.wide(x.float())


def without_gradients(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = net.wide(x).sigmoid()
    return net.wide(x) * scale


def mixed(net: Net, x: Tensor) -> Tensor:
    return torch.cat([net.wide(x), net.wide(x).exp().float()], 1)


def attention(net: Net, x: Tensor) -> Tensor:
    q = net.wide(x)
    return nn.functional.scaled_dot_product_attention(q, q, q)


def einsum(net: Net, x: Tensor) -> Tensor:
    return torch.einsum("bci,oi->bco", x, net.wide.weight)


def in_place(net: Net, x: Tensor) -> Tensor:
    return net.wide(x).relu_().mul_(2).add_(x.mean())


def single(net: Net, x: Tensor) -> Tensor:
    y = net.wide(x)
    return y / y.norm(dim=-1, keepdim=True).clamp(min=0.1)


def casts(program: Program) -> set[torch.dtype]:
    return {
        n.args[1]
        for n in program.graph.find_nodes(op="call_function", target=torch.ops.aten.to.dtype)
    }


@pytest.mark.parametrize(
    "inner", [plain, nested, without_gradients, mixed, attention, einsum, in_place, single]
)
def test_a_region_under_autocast_is_pruned(inner: Function) -> None:
    model, x = Net(inner), torch.randn(2, 3, 8)
    for _ in range(3):
        model(x)  # gives the norm statistics
    outcome = fp.prune(model.eval(), x, keep=0.7)
    assert torch.bfloat16 in casts(outcome.program)
    assert not any("wrap_with" in str(n.target) for n in outcome.program.nodes)


@pytest.mark.parametrize("inner", [plain, nested, mixed, attention, einsum, in_place, single])
def test_a_region_under_autocast_is_pruned_in_training(inner: Function) -> None:
    assert fp.prune(Net(inner).train(), torch.randn(2, 3, 8), keep=0.7).report.checks[0].ok


def test_no_grad_inside_a_region_in_training_is_refused() -> None:
    """torch.export forgets it; the check of gradients does not."""
    with pytest.raises(VerifyError, match="trains differently"):
        fp.prune(Net(without_gradients).train(), torch.randn(2, 3, 8), keep=0.7)


def test_values_and_types_are_those_of_the_model() -> None:
    model, x = Net(plain).eval(), torch.randn(5, 3, 8)
    program = fp.capture(model, x)
    torch.testing.assert_close(program(x), model(x), rtol=0, atol=0)
    assert {n.meta["val"].dtype for n in program.nodes if n.name.startswith("linear")} == {
        torch.bfloat16, torch.float32
    }  # fmt: skip


def test_running_statistics_are_updated_as_by_the_model() -> None:
    model, x = Net(plain).train(), torch.randn(5, 3, 8)
    program = fp.capture(copy.deepcopy(model), x)
    model(x), program(x)
    found = program.tensors()
    for name in ("norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(found[name], model.get_buffer(name))
        assert not found[name].equal(Net(plain).get_buffer(name))


def test_gradients_pass_through_the_casts() -> None:
    model, x = Net(plain).eval(), torch.randn(5, 3, 8)
    program = fp.capture(model, x)
    wanted = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    found = torch.autograd.grad(program.module(x).sum(), list(program.module.parameters()))
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)


def test_an_operator_that_does_more_than_cast_is_named() -> None:
    graph = fx.Graph()
    node = graph.call_function(torch.ops.aten.relu.default, (graph.placeholder("x"),))
    graph.output(node)
    for n in graph.nodes:
        n.meta["val"] = torch.ones(2)
    node.meta["val"] = torch.ones(2, dtype=torch.bfloat16)
    with pytest.raises(NoCastError, match="relu"):
        spell_casts(fx.GraphModule(nn.Module(), graph), "cpu", None)
