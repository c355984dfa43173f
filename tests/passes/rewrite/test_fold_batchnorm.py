from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune as fp
from fxprune.graph.editor import Editor
from fxprune.graph.gate import Gate
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune_passes.rewrite.fold_batchnorm import FoldBatchnorm

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def shake(model: nn.Module) -> nn.Module:
    """Float64, with statistics, scales and shifts that are not those of a fresh layer."""
    torch.manual_seed(1)
    for module in model.double().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


def norms(program: Program) -> int:
    return sum("batch_norm" in str(n.target) for n in program.nodes)


def missed(result: Any) -> list[str]:
    return [r.why for r in result.select(kind="missed")]


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor, int, bool]:
    """A layer, an input for it, how many spatial axes there are, and whether it is padded."""
    dims, groups = draw(st.integers(0, 2)), draw(st.sampled_from((1, 2, 3)))
    bias = draw(st.booleans())
    if dims == 0:
        return nn.Linear(6, 12, bias), torch.randn(4, 6), 1, False
    transposed = draw(st.booleans())
    kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, kernel - 1))
    kind: Any = (TRANSPOSED if transposed else CONV)[dims - 1]
    layer = kind(
        6, 12, kernel, stride, padding, groups=groups, bias=bias, dilation=draw(st.integers(1, 2))
    )
    return layer, torch.randn(2, 6, *(9,) * dims), dims, transposed or padding > 0


@settings(max_examples=15, deadline=None, database=None)
@given(layers(), st.booleans(), st.booleans())
def test_folds_into_the_layer_before(
    rewritten: Any, drawn: Any, affine: bool, follow: bool
) -> None:
    layer, x, dims, _ = drawn
    model = nn.Sequential(layer, NORM[dims - 1](12, affine=affine), nn.ReLU())
    result = rewritten(shake(model), x.double(), "fold-batchnorm")
    assert norms(result.program) == 0
    names = set(result.program.tensors())
    assert names == {"0.weight", "0.bias"}


@settings(max_examples=15, deadline=None, database=None)
@given(layers())
def test_folds_into_the_layer_after_where_it_is_not_padded(rewritten: Any, drawn: Any) -> None:
    layer, x, dims, border = drawn
    model = nn.Sequential(NORM[dims - 1](6), layer)
    result = rewritten(shake(model), x.double(), "fold-batchnorm")
    assert norms(result.program) == int(border)
    if border:
        assert "a nonzero shift" in missed(result)[0]


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_without_a_shift_padding_is_no_matter(rewritten: Any, kind: Any) -> None:
    model = shake(nn.Sequential(nn.BatchNorm2d(6), kind(6, 4, 3, padding=1, groups=2)))
    model[0].running_mean.zero_()  # type: ignore[index]
    nn.init.zeros_(model[0].bias)  # type: ignore[index]
    result = rewritten(model, torch.randn(2, 6, 8, 8).double(), "fold-batchnorm")
    assert norms(result.program) == 0


def test_two_in_a_row_and_a_linear_layer(rewritten: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.BatchNorm1d(5))
    result = rewritten(shake(model), torch.randn(4, 6).double(), "fold-batchnorm")
    assert norms(result.program) == 0


def test_channels_of_a_sequence_are_not_those_of_the_norm(rewritten: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(7))
    result = rewritten(shake(model), torch.randn(4, 7, 6).double(), "fold-batchnorm")
    assert norms(result.program) == 1


class Twice(nn.Module):
    """One convolution called twice, with a norm each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), *map(nn.BatchNorm2d, (4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.conv(torch.relu(self.one(self.conv(x)))))


class Tied(nn.Module):
    """Two convolutions of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.norm(self.one(x))))


class ReadTwice(nn.Module):
    """A convolution whose output something else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return torch.relu(self.norm(y)) + y


class WeightRead(nn.Module):
    """A weight that something else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x))) + self.conv.weight.sum()


class Computed(nn.Module):
    """Weight standardisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
        return torch.relu(self.norm(nn.functional.conv2d(x, weight, self.conv.bias)))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Twice, "is read 2 times"),
        (Tied, "is read 2 times"),
        (ReadTwice, "conv2d has 2 readers"),
        (WeightRead, "is read 2 times"),
        (Computed, "is computed, not a parameter"),
    ],
)
def test_what_others_read_is_left_and_said(rewritten: Any, kind: Any, why: str) -> None:
    result = rewritten(shake(kind()), torch.randn(2, 4, 8, 8).double(), "fold-batchnorm")
    assert result.program is result.original
    assert all(why in reason for reason in missed(result))
    assert missed(result)


def test_train_mode_is_left_and_said(rewritten: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    result = rewritten(
        model.double(), torch.randn(2, 4, 8, 8).double(), "fold-batchnorm", train=True
    )
    assert norms(result.program) == 1
    assert [r.code for r in result.select(kind="missed")] == ["fold-batchnorm.train-mode"]


def test_without_running_statistics_it_is_left(rewritten: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    result = rewritten(shake(model), torch.randn(2, 4, 8, 8).double(), "fold-batchnorm")
    assert "it has no running statistics" in missed(result)[0]


def test_a_leaf_in_between_would_see_another_value() -> None:
    model = shake(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    program = fp.capture(model, torch.randn(2, 4, 8, 8).double())
    editor = Editor(program)
    norm = next(n for n in editor.nodes if "batch_norm" in n.name)
    conv = norm.args[0]
    editor.add_leaf("gate", Gate(4))
    gate = editor.call_leaf("gate", (conv, 1), before=norm)
    norm.replace_input_with(conv, gate)  # type: ignore[arg-type]
    result = run_pipeline(editor.finish(), "fold-batchnorm")
    assert "gate lies in between" in missed(result)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_types_are_rounded_once(dtype: torch.dtype) -> None:
    model = shake(nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)))
    x = torch.randn(2, 4, 8, 8)
    exact = run_pipeline(fp.capture(model, x.double()), "fold-batchnorm").program.tensors()
    result = run_pipeline(fp.capture(model.to(dtype), x.to(dtype)), "fold-batchnorm")
    assert norms(result.program) == 0
    for name, tensor in result.program.tensors().items():
        assert tensor.dtype == dtype
        scale = float(exact[name].detach().abs().max())
        assert (
            float((tensor.double() - exact[name]).detach().abs().max())
            <= 8 * torch.finfo(dtype).eps * scale
        )


def test_what_can_be_trained_stays_so_and_layout_too() -> None:
    model = shake(nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)))
    model = model.to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)  # type: ignore[index]
    x = torch.randn(2, 4, 8, 8).double().to(memory_format=torch.channels_last)
    folded = FoldBatchnorm()(fp.capture(model, x)).tensors()
    assert not folded["0.weight"].requires_grad
    assert folded["0.bias"].requires_grad
    assert folded["0.weight"].is_contiguous(memory_format=torch.channels_last)


def test_a_taken_name_is_not_taken_twice(rewritten: Any) -> None:
    class Taken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(nn.functional.linear(input=x, weight=self.weight)) * self.bias

    result = rewritten(shake(Taken()), torch.randn(3, 4).double(), "fold-batchnorm")
    assert {"weight", "bias", "bias_1"} == set(result.program.tensors())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_networks_lose_every_batch_norm(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    program = fp.capture(getattr(torchvision.models, name)().eval(), torch.randn(2, 3, 64, 64))
    result = run_pipeline(program, "fold-batchnorm")
    assert norms(result.program) == 0
    assert all(check.ok for check in result.steps[0].checks)
    assert len(result.steps[0].checks) == 2
    assert not any("num_batches" in n or "running" in n for n in result.program.tensors())
