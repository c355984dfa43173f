"""Tests of fxprune.capture.inplace."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxprune.capture.export import capture
from fxprune.graph.program import Program


class Fn(nn.Module):
    """A linear, then a function; the buffer is there to be written."""

    count: Tensor

    def __init__(self, function: Callable[[Tensor, "Fn"], Tensor], first: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4) if first else nn.Identity()
        self.function = function
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x), self)


def writes(program: Program) -> int:
    return sum(
        str(n.target).split(".")[1].endswith("_") for n in program.nodes if "aten" in str(n.target)
    )


def relu_add(x: Tensor, _: Fn) -> Tensor:
    y = functional.relu_(x)
    y += 1
    return y.clamp_(0, 1).mul_(x)


def view_before(x: Tensor, _: Fn) -> Tensor:
    view = x[:, :2]
    x.mul_(2)
    return view


def write_a_view(x: Tensor, _: Fn) -> Tensor:
    x[:, :2].mul_(2)
    return x


def view_after(x: Tensor, _: Fn) -> Tensor:
    x.mul_(2)
    return x[:, :2] + x.view(-1, 2, 2).sum((1, 2)).unsqueeze(1)


def parts(x: Tensor, _: Fn) -> Tensor:
    with torch.no_grad():
        a, b = (x * 2).mul_(3).chunk(2, 1)
        a.sigmoid_()
        b.tanh_()
    return a * b


def part_read_before(x: Tensor, _: Fn) -> Tensor:
    with torch.no_grad():
        a, b = (x * 2).chunk(2, 1)
        again = a[:, :1]
        a.relu_()
    return a + b + again


def parts_that_overlap(x: Tensor, _: Fn) -> Tensor:
    with torch.no_grad():
        a, b = (x[:, :1] * 2).expand(-1, 2).unbind(1)
        a.mul_(3)
    return a + b


def sum_before(x: Tensor, _: Fn) -> Tensor:
    total = x.sum(1, keepdim=True)
    x.sub_(total)
    return x + total


def keeps_dtype(x: Tensor, _: Fn) -> Tensor:
    return x.to(torch.bfloat16).add_(x)


def through_dropout(x: Tensor, _: Fn) -> Tensor:
    same = functional.dropout(x, 0.5, training=False)
    same.mul_(2)
    return x


def one_of_two_outputs(x: Tensor, _: Fn) -> Tensor:
    values, positions = x.topk(2)
    values /= values.sum(1, keepdim=True)
    return values + positions


def fill_and_copy(x: Tensor, _: Fn) -> Tensor:
    return x.new_empty(4).fill_(2).copy_(x[0]).masked_fill_(x[0] > 0, 1.0)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (relu_add, 0),
        (view_after, 0),
        (sum_before, 0),
        (fill_and_copy, 0),
        (one_of_two_outputs, 0),
        (view_before, 1),
        (write_a_view, 1),
        (keeps_dtype, 1),
        (through_dropout, 0),
        (parts, 0),
        (part_read_before, 1),
        (parts_that_overlap, 1),
    ],
)
def test_functional_where_safe(function: Callable[[Tensor, Fn], Tensor], left: int) -> None:
    model = Fn(function)
    program = capture(model, torch.randn(2, 4))
    assert writes(program) == left
    x = torch.randn(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x))


def test_an_unrolled_cell_can_be_trained() -> None:
    """Its gates are parts of one tensor, each of which its decomposition writes in place."""
    cell, head = nn.LSTMCell(4, 3), nn.Linear(3, 2)

    def run(x: Tensor, _: Fn) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 3)
        for _i in range(2):
            h, c = cell(x, (h, c))
        return head(h)

    model = Fn(run)
    model.cell, model.head = cell, head
    program = capture(model, torch.randn(2, 4))
    assert writes(program) == 0
    x = torch.randn(5, 4)
    program(x).sum().backward()
    grad = program.tensors()["cell.weight_hh"].grad
    assert grad is not None
    torch.testing.assert_close(program(x), model(x))


def count(x: Tensor, model: Fn) -> Tensor:
    model.count.add_(1)
    return x + model.count


def copied(x: Tensor, to: Tensor) -> Tensor:
    y = torch.empty_like(to).copy_(x)
    return y.mul_(2) + x


COPIES: dict[str, Callable[[Tensor, Fn], Tensor]] = {
    "plain": lambda x, _: copied(x, x),
    "to more": lambda x, _: copied(x.sum(0), x),
    "to less exact": lambda x, _: copied(x, x.bfloat16()).to(x.dtype),
    "from integers": lambda x, _: x + torch.empty_like(x).copy_(torch.arange(4)),
    "read later": lambda x, _: copied(x, x) + x.mul_(3),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_trains(name: str) -> None:
    model, x = Fn(COPIES[name]).train(), torch.randn(3, 4)
    program = capture(model, x)
    torch.testing.assert_close(program(x), model(x), rtol=0, atol=0)
    found, wanted = (
        torch.autograd.grad(f(x).square().sum(), list(model.parameters())) for f in (program, model)
    )
    torch.testing.assert_close(found, wanted)


def test_a_buffer_stays_written() -> None:
    model = Fn(count)
    program = capture(model, torch.randn(2, 4))
    assert model.count.sum() == 0
    program(torch.randn(3, 4))
    assert program.tensors()["count"].sum() == 4


def test_writing_an_input_is_dropped_with_a_remark() -> None:
    model, x = Fn(lambda x, _: x.mul_(2), first=False), torch.ones(2, 4)
    program = capture(model, x.clone())
    assert [r.code for r in program.remarks] == ["capture.input-write-dropped"]
    assert program(x).sum() == 16
    assert x.sum() == 8
