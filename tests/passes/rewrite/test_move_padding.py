"""Padding that moves: exact inside, measured at the border, and exact to fuse afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.pipeline import Result, run_pipeline
from fxprune_passes.rewrite.fuse_linear import FuseLinear
from fxprune_passes.rewrite.layers.affine_layer import read_layer
from fxprune_passes.rewrite.move_padding import MovePadding

ALWAYS = MovePadding(when="always")


class Sizes(fx.Interpreter):
    """Runs a graph and holds the size of each layer and norm to the one that its node states."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor):
            assert list(value.shape[1:]) == list(n.meta["val"].shape[1:])
        return value


def paddings(program: Program) -> list[list[int]]:
    layers = [x for n in program.nodes if (x := read_layer(n)) is not None]
    return [list(layer.geometry.padding) for layer in layers]


def random(model: nn.Module) -> nn.Module:
    """Float64, with running statistics and affine parameters that are not those of a new norm."""
    torch.manual_seed(0)
    for module in model.double().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(tensor)  # type: ignore[arg-type]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


def moved(model: nn.Module, x: Tensor, step: Any = ALWAYS) -> Result:
    program = fp.capture(model, x)
    result = run_pipeline(program, [step])
    Sizes(result.program.module).run(x)
    assert run_pipeline(result.program, [step]).program is result.program
    return result


def fused(program: Program) -> Program:
    """One layer, with what it computes held to the program before by the pass manager and here."""
    after = run_pipeline(program, ["fold-batchnorm", FuseLinear(when="always")]).program
    assert len(paddings(after)) == 1
    (x,) = program.args
    torch.testing.assert_close(after(x), program(x), rtol=1e-10, atol=1e-10)
    return after


def pair(norm: bool = True, **options: Any) -> nn.Module:
    first: dict[str, Any] = {"padding": 1} | options.get("first", {})
    second: dict[str, Any] = {"padding": 1} | options.get("second", {})
    between = [nn.BatchNorm2d(6)] if norm else []
    return random(
        nn.Sequential(nn.Conv2d(4, 6, 3, **first), *between, nn.Conv2d(6, 4, 3, **second))
    )


CASES: list[dict[str, Any]] = [
    {},
    {"norm": False},
    {"first": {"stride": 2}},
    {"second": {"stride": 2, "dilation": 2, "padding": 2}},
    {"first": {"stride": (2, 1), "dilation": (1, 2)}, "second": {"padding": (1, 0)}},
    {"first": {"groups": 2, "padding": "same"}, "second": {"groups": 2, "padding": "same"}},
]


@pytest.mark.parametrize("options", CASES)
def test_exact_inside_and_exact_to_fuse(options: dict[str, Any]) -> None:
    model, x = pair(**options), torch.randn(2, 4, 17, 17).double()
    result = moved(model, x)
    before, after = model(x), result.program(x)
    assert before.shape == after.shape
    assert paddings(result.program)[1] == [0, 0]
    assert torch.equal(before[..., 3:-3, 3:-3], after[..., 3:-3, 3:-3])
    assert not torch.allclose(before, after)
    fused(result.program)


def test_the_border_is_that_of_one_layer_that_pads_its_input() -> None:
    """Against unpadded layers on a padded input."""
    model, x = pair(first={"stride": 2}), torch.randn(2, 4, 16, 16).double()
    first, norm, second = model.children()
    wide = nn.functional.pad(x, [3] * 4)  # 1 + 1 * 2
    expected = nn.functional.conv2d(wide, first.weight, first.bias, stride=2)  # type: ignore[arg-type]
    expected = nn.functional.conv2d(norm(expected), second.weight, second.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(moved(model, x).program(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 3])
def test_other_numbers_of_axes(dims: int) -> None:
    conv: Any = getattr(nn, f"Conv{dims}d")
    model = random(nn.Sequential(conv(2, 3, 3, padding=1), conv(3, 2, 3, padding=1)))
    result = moved(model, torch.randn(2, 2, *(7,) * dims).double())
    assert paddings(result.program) == [[2] * dims, [0] * dims]
    fused(result.program)


def test_a_row_of_three_moves_to_its_start() -> None:
    row = [nn.Conv2d(3, 3, 3, s, padding=1) for s in (2, 1, 1)]
    result = moved(random(nn.Sequential(*row)), torch.randn(1, 3, 20, 20).double())
    assert paddings(result.program) == [[5, 5], [0, 0], [0, 0]]
    fused(result.program)


def test_the_change_at_the_border_is_measured() -> None:
    model, x = pair(), torch.randn(2, 4, 12, 12).double()
    result = moved(model, x)
    (remark,) = (r for r in result.remarks if r.code == "move-padding.border-error")
    assert [r.code for r in result.select(kind="applied")] == ["move-padding.moved"]
    said = float(remark.what.partition("at most ")[2].partition(",")[0])
    with torch.no_grad():
        error = (model(x) - result.program(x)).abs().max() / model(x).abs().max()
    assert 0.2 < said / float(error) < 5  # on other random inputs


def test_in_train_mode_the_norm_stays_and_the_result_trains() -> None:
    model, x = pair().train(), torch.randn(2, 4, 8, 8).double()
    program = moved(model, x).program
    assert program.training
    counted = int(program.module.get_buffer("1.num_batches_tracked"))
    program.module(x).sum().backward()
    assert all(p.grad is not None for p in program.module.parameters())
    assert int(program.module.get_buffer("1.num_batches_tracked")) == counted + 1
    fused(program.eval())


def test_padding_moves_where_fusing_is_cheaper() -> None:
    wide = random(nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 4, 3, padding=1)))
    x = torch.randn(1, 4, 8, 8).double()
    assert paddings(moved(wide, x, MovePadding()).program) == [[2, 2], [0, 0]]
    equal = random(nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))))
    result = moved(equal, x, MovePadding())
    assert result.program is result.original
    (remark,) = result.select(kind="missed")
    assert remark.code == "move-padding.cost"
    assert remark.why == "the fused layer would cost 25,600 MACs instead of 18,432 MACs"


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_other_modes_are_refused(mode: Any) -> None:
    plain = nn.Conv2d(3, 3, 3, padding=1)
    other = nn.Conv2d(3, 3, 3, padding=1, padding_mode=mode)
    x = torch.randn(1, 3, 8, 8).double()
    between = moved(random(nn.Sequential(plain, nn.BatchNorm2d(3), other)), x)
    assert between.program is between.original
    (remark,) = between.select(kind="missed")
    assert remark.code == "move-padding.mode"
    assert mode in remark.why
    before = moved(random(nn.Sequential(other, plain)), x)
    assert before.program is before.original
    assert [r.code for r in before.select(kind="missed")] == ["move-padding.mode"]


def test_what_is_exact_already_stays() -> None:
    model = random(nn.Sequential(nn.Conv2d(3, 9, 1, bias=False), nn.Conv2d(9, 3, 3, padding=1)))
    result = moved(model, torch.randn(1, 3, 8, 8).double())
    assert result.program is result.original
    fused(result.program)


def test_a_value_with_another_reader_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x)
            return y + self.b(y)

    result = moved(random(Net()), torch.randn(1, 3, 8, 8).double())
    assert result.program is result.original
    assert [r.code for r in result.select(kind="missed")] == ["move-padding.row"]
