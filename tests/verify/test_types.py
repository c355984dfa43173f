"""Tests of fxprune.verify.types: a region in a 16-bit type hides no fault elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.errors import VerifyError
from fxprune.verify import compare_gradients, compare_model
from fxprune.verify.types import gradient_types, reaching_types

HALF, SINGLE = torch.bfloat16, torch.float32
aten = torch.ops.aten


class Region(nn.Module):
    """float32, then a layer in bfloat16, then float32; and an output that nothing in bfloat16 reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(6, 8), nn.Linear(8, 8).to(HALF), nn.Linear(8, 3)
        self.apart = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x).tanh()
        z = self.mid(y.to(HALF)).float().sigmoid()
        return self.last(z), self.apart(x).exp()


class Cast(nn.Module):
    """The same by autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        with torch.autocast("cpu", dtype=HALF):
            y = self.mid(y)
        return self.last(y.float().sigmoid())


def off_by(program: fp.Program, op: Any, factor: float, last: bool = True) -> None:
    """Multiplies the result of an operator."""
    node = program.graph.find_nodes(op="call_function", target=op)[-1 if last else 0]
    with program.graph.inserting_after(node):
        wrong = program.graph.call_function(aten.mul.Tensor, (node, factor))
    wrong.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(wrong, delete_user_cb=lambda user: user is not wrong)
    program.module.recompile()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Region, Cast])
def test_what_is_right_agrees(kind: Callable[[], nn.Module], training: bool) -> None:
    model, x = kind().train(training), torch.randn(5, 6)
    check = compare_model(model, fp.capture(model, x))
    assert (check.ok, check.max_relative_error, check.dtype) == (True, 0, "float32")


@pytest.mark.parametrize("op", [aten.tanh.default, aten.sigmoid.default])
@pytest.mark.parametrize("kind", [Region, Cast])
def test_a_fault_in_float32_is_found_beside_a_16_bit_region(
    kind: Callable[[], nn.Module], op: Any
) -> None:
    model = kind().eval()
    program = fp.capture(model, torch.randn(5, 6))
    off_by(program, op, 1.001)
    check = compare_model(model, program)
    assert not check.ok
    assert check.dtype == "float32"
    assert check.tolerance < check.max_relative_error < 2e-3


def test_a_fault_where_no_16_bit_value_comes_is_found_whatever_happens_there() -> None:
    model = Region().eval()
    program = fp.capture(model, torch.randn(5, 6))
    off_by(program, aten.exp.default, 1.001)
    to = program.graph.find_nodes(op="call_function", target=aten.linear.default)[1]
    with program.graph.inserting_before(to):  # roundings of another kernel
        shifted = program.graph.call_function(aten.mul.Tensor, (to.args[0], 1.003))
    shifted.meta["val"] = to.args[0].meta["val"]
    to.update_arg(0, shifted)
    program.module.recompile()
    check = compare_model(model, program)
    assert not check.ok
    assert "output 1" in check.worst_output


def test_roundings_of_another_order_are_none_in_16_bits() -> None:
    model = Region().eval()
    program = fp.capture(model, torch.randn(5, 6))
    node = program.graph.find_nodes(op="call_function", target=aten.linear.default)[1]
    x, weight, bias = node.args
    with program.graph.inserting_before(node):  # adds the bias to a rounded product
        product = program.graph.call_function(aten.linear.default, (x, weight))
        sum_ = program.graph.call_function(aten.add.Tensor, (product, bias))
    for new in (product, sum_):
        new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(sum_)
    program.graph.erase_node(node)
    program.module.recompile()
    assert compare_model(model, program).ok


def test_types_that_reach_an_output_and_a_gradient() -> None:
    program = fp.capture(Region(), torch.randn(5, 6))
    assert reaching_types(program) == [{HALF, SINGLE}, {SINGLE}]
    found = gradient_types(program)
    assert {n for n, types in found.items() if types == {SINGLE}} == {"apart.weight", "apart.bias"}
    assert found["last.weight"] == found["first.weight"] == {HALF, SINGLE}


def test_a_wrong_gradient_where_no_16_bit_value_comes_is_found() -> None:
    model = Region().train()
    program = fp.capture(model, torch.randn(5, 6))
    off_by(program, aten.exp.default, 1.01)
    with pytest.raises(VerifyError, match=r"the gradient of apart\.(weight|bias)"):
        compare_gradients(model, program)


class Faint(nn.Module):
    """A layer in bfloat16 with 0.4 % of the largest gradient, and a bias without any, before a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.faint = nn.Linear(6, 3)
        self.to(HALF)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu()) + 0.005 * self.faint(x).tanh()


def test_a_small_gradient_in_16_bits_is_no_rounding_error() -> None:
    torch.manual_seed(0)
    model = Faint().train()
    program = fp.capture(model, torch.randn(16, 6, dtype=HALF))
    compare_gradients(model, program)
    (node,) = program.graph.find_nodes(op="call_function", target=aten.tanh.default)
    with program.graph.inserting_after(node):
        cut = program.graph.call_function(aten.detach.default, (node,))
    node.replace_all_uses_with(cut, delete_user_cb=lambda user: user is not cut)
    program.module.recompile()
    with pytest.raises(VerifyError, match=r"the gradient of faint\.(weight|bias)"):
        compare_gradients(model, program)


def test_the_rounding_error_of_a_zero_gradient_is_none() -> None:
    model = Faint().train()
    program = fp.capture(model, torch.randn(16, 6, dtype=HALF))
    node = program.graph.find_nodes(op="call_function", target=aten.linear.default)[0]
    x, weight, bias = node.args
    with program.graph.inserting_before(node):
        product = program.graph.call_function(aten.linear.default, (x, weight))
        sum_ = program.graph.call_function(aten.add.Tensor, (product, bias))
    for new in (product, sum_):
        new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(sum_)
    program.graph.erase_node(node)
    program.module.recompile()
    (check,), _ = compare_gradients(model, program)
    assert check.ok
