"""Tests of fxprune.capture.normalise."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from fxprune.analysis.rulebook import find_rule
from fxprune.capture.export import capture
from fxprune.errors import CaptureError
from fxprune.graph.program import Program, module_path, source_line
from fxprune.torch_private import operator_name, overload

Function = Callable[[Tensor], Any]


class Fn(nn.Module):
    """A convolution, then a function."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


def captured(function: Function, rules: Callable[[str], bool] | None = None) -> Program:
    """The program of a function, checked against it at another batch size."""
    model = Fn(function)
    known = find_rule if rules is None else lambda op: rules(operator_name(op)) or None
    with patch("fxprune.capture.normalise.find_rule", known):
        program = capture(model, torch.randn(2, 4, 3, 3))
    x = torch.randn(5, 4, 3, 3)
    torch.testing.assert_close(program(x), model(x))
    assert program.free_batch
    assert all("val" in n.meta for n in program.nodes if n.op not in ("output", "get_attr"))
    return program


def names(program: Program) -> list[str]:
    return [operator_name(op) for n in program.nodes if (op := overload(n)) is not None]


def no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
    return x + y


def no_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return x * 2


def test_einsum_is_decomposed_and_keeps_its_place() -> None:
    program = captured(lambda x: torch.einsum("bchw,bdhw->bcd", x, x))
    assert "aten.einsum" not in names(program)
    made = [n for n in program.nodes if "bmm" in str(n.target)]
    assert made
    assert "test_normalise" in source_line(made[0])
    assert module_path(made[0]) == ""
    assert "nn_module_stack" in made[0].meta


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda x: torch.pixel_shuffle(x, 2), "aten.pixel_shuffle"),
        (lambda x: nn.functional.hardswish(x), "aten.hardswish"),
        (lambda x: torch.tensordot(x, x, dims=([0, 1], [0, 1])), "aten.tensordot"),
        (lambda x: torch.var_mean(x, (2, 3)), "aten.var_mean.dim"),
        (lambda x: x.reshape(x.shape[0], -1).unflatten(1, (4, 9)), "aten.unflatten.int"),
    ],
)
def test_operators_without_rule_are_decomposed(function: Function, op: str) -> None:
    assert op in names(captured(function, lambda name: True))
    assert op not in names(captured(function, lambda name: name != op))


def test_an_operator_without_decomposition_stays() -> None:
    program = captured(lambda x: x.cumsum(1), lambda name: False)
    assert "aten.cumsum" in names(program)
    assert "aten.convolution" in names(program)


@pytest.mark.parametrize(
    "split",
    [
        lambda x: x.chunk(2, 1),
        lambda x: x.chunk(3, dim=-3),
        lambda x: x.split(3, 1),
        lambda x: x.split([1, 3], 1),
        lambda x: x.tensor_split(3, 1),
        lambda x: x.unsafe_chunk(2, 1),
    ],
)
def test_splits_are_spelled(split: Function) -> None:
    found = names(captured(split))
    assert found == ["aten.conv2d", "aten.split_with_sizes"]


def test_a_split_of_the_batch_stays() -> None:
    program = capture(Fn(lambda x: x.chunk(2, 0)), torch.randn(4, 4, 3, 3))
    assert "aten.split_with_sizes" not in names(program)


def test_regions_are_inlined() -> None:
    program = captured(no_grad)
    assert names(program) == ["aten.conv2d", "aten.detach", "aten.mul.Tensor", "aten.add.Tensor"]
    assert set(dict(program.module.named_modules())) == {"", "conv"}
    assert names(captured(no_autocast)) == ["aten.conv2d", "aten.mul.Tensor"]


def partly_no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
        with torch.enable_grad():
            z = y * x
        w = z + x
    return z.exp() + w


@pytest.mark.parametrize("function", [no_grad, partly_no_grad])
def test_a_region_without_gradients_has_none(function: Function) -> None:
    model, x = Fn(function), torch.randn(2, 4, 3, 3)
    program = capture(model, x)
    assert not program.remarks
    for run in (model, program):
        run(x).square().sum().backward()
    torch.testing.assert_close(program.tensors()["conv.weight"].grad, model.conv.weight.grad)


def test_spectral_norm_trains_as_the_model_does() -> None:
    """It writes its estimates in a region without gradients, by out=."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        normed = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5))
        return nn.Sequential(normed, nn.Linear(5, 2)).train()

    model, x = build(), torch.randn(3, 4)
    program = capture(build(), x)
    for _ in range(2):
        for run in (model, program):
            run(x).square().sum().backward()
    grads = {k: p.grad for k, p in model.named_parameters()}
    found = {k: program.tensors()[k].grad for k in grads}
    torch.testing.assert_close(found, grads)


def test_a_region_under_autocast_returns_its_dtype_at_any_batch_size() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return x @ x

    program = capture(Mixed(), torch.randn(2, 3, 3))
    x = torch.randn(4, 3, 3)
    assert program(x).dtype == torch.bfloat16
    torch.testing.assert_close(program(x), Mixed()(x))


def test_checks_of_the_batch_are_dropped() -> None:
    def function(x: Tensor) -> Tensor:
        torch._check(x.shape[0] < 100)
        return x.to(torch.float32)

    assert all("assert" not in str(n.target) for n in captured(function).nodes)


def test_a_transform_whose_halves_would_stand_in_the_graph_is_refused() -> None:
    model = Fn(torch.vmap(lambda x: 2 * x))
    with pytest.raises(CaptureError, match=r"torch\.func") as caught:
        capture(model, torch.randn(2, 4, 3, 3))
    assert "test_normalise.py" in str(caught.value)


def test_a_view_is_a_reshape_but_where_it_is_written_through() -> None:
    free = captured(lambda x: x.view(x.shape[0], 12, 3).view_as(x))
    assert names(free)[-2:] == ["aten.reshape", "aten.reshape_as"]

    def written(x: Tensor) -> Tensor:
        y = x.view(x.shape[0], 12, 3)
        y.add_(1)
        return x * 2

    assert "aten.view" in names(captured(written))
