"""Tests of fxprune.write_back.fold: averages over removed positions as weights of norms."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.verify import compare_model
from fxprune.write_back import written


class RootMeanSquare(nn.Module):
    def __init__(self, width: int, offset: float = 0.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.offset, self.eps = nn.Parameter(torch.rand(width) + 0.5), offset, eps

    def forward(self, x: torch.Tensor) -> Any:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * (self.offset + self.weight)


class Response(nn.Module):
    """The global response norm of ConvNeXt-V2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.rand(width) + 0.5) for _ in range(2))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> Any:
        g = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        n = g / (g.mean(-1, keepdim=True) + self.eps)
        return x + self.weight * (x * n) + self.bias


class Plain(nn.Module):
    """Has no weight that could take a factor."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> Any:
        return x / x.abs().mean(-1, keepdim=True)


def network(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), norm, nn.Linear(16, 3)).eval()


def half(model: nn.Module, x: torch.Tensor) -> tuple[fp.Plan, fp.Program]:
    program = fp.capture(model, (x,))
    plan = fp.plan(program, {"0.weight": (0, [1, 2, 5, 8, 9, 12])})
    return plan, fp.shrink(program, plan)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_root_mean_square(offset: float) -> None:
    model = network(RootMeanSquare(16, offset))
    x = torch.randn(4, 7, 6)
    plan, small = half(model, x)
    smaller = fp.write_back(model, plan)
    before, after = (m.get_parameter("1.weight") + offset for m in (model, smaller))
    kept = torch.tensor(plan.kept["1.weight"][0])
    torch.testing.assert_close(after, before[kept] * (16 / 10) ** 0.5)
    assert smaller[1].eps == pytest.approx(1e-5 * 16 / 10)
    for size in (1.0, 1e-3):
        torch.testing.assert_close(smaller(x * size), small(x * size))
    assert model[1].eps == 1e-5


def test_a_global_response_norm() -> None:
    model = network(Response(16))
    x = torch.randn(4, 5, 5, 6)
    plan, small = half(model, x)
    smaller = fp.write_back(model, plan)
    torch.testing.assert_close(smaller(x), small(x))
    assert smaller[1].eps == pytest.approx(1.6e-6)


def test_a_norm_without_weight_is_refused() -> None:
    model = network(Plain(16))
    plan, _ = half(model, torch.randn(4, 6))
    with pytest.raises(fp.FxpruneError, match="cannot express") as error:
        fp.write_back(model, plan)
    assert " in 1" in error.value.where


def test_a_norm_on_meta() -> None:
    model = network(RootMeanSquare(16)).to("meta")
    plan, _ = half(model, torch.randn(4, 6))
    smaller = fp.write_back(model, plan)
    assert smaller[1].eps == pytest.approx(1.6e-5)
    assert smaller[1].weight.is_meta


def test_in_place_and_not_verified() -> None:
    model = network(RootMeanSquare(16))
    x = torch.randn(4, 6)
    plan, small = half(model, x)
    assert fp.write_back(model, plan, inplace=True, verify=False) is model
    torch.testing.assert_close(model(x), small(x))


def test_values_learnt_later_are_folded_too() -> None:
    model = network(RootMeanSquare(16))
    plan, small = half(model, torch.randn(4, 6))
    result = written(model, plan)
    with torch.no_grad():
        for value in small.tensors().values():
            value.mul_(1.5)
    result.model.load_state_dict(result.folds.of(small.tensors()))
    assert compare_model(result.model, small, tensors=small.tensors(), written=result.folds.of).ok
    x = torch.randn(3, 6)
    torch.testing.assert_close(result.model(x), small(x))


class InFloat32(RootMeanSquare):
    """Divides in float32, and multiplies by its weight in the type of what it is given."""

    def forward(self, x: torch.Tensor) -> Any:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 5e-2), (torch.float64, 1e-6)])
def test_a_norm_that_divides_in_another_type(dtype: torch.dtype, error: float) -> None:
    model = network(InFloat32(16)).to(dtype)
    x = torch.randn(4, 6, dtype=dtype)
    plan, small = half(model, x)
    smaller = fp.write_back(model, plan)
    assert smaller[1].eps == pytest.approx(1.6e-5)
    torch.testing.assert_close(smaller(x), small(x), rtol=error, atol=error)


class ByWidth(nn.Module):
    """Adds a number of the width, which no weight takes over."""

    def forward(self, x: torch.Tensor) -> Any:
        return (x.float() + x.shape[-1]).to(x.dtype)


def test_a_number_of_the_width_after_such_a_norm_is_refused() -> None:
    norm = InFloat32(16)
    model = nn.Sequential(nn.Linear(6, 16), norm, ByWidth(), nn.Linear(16, 3)).eval().bfloat16()
    plan, _ = half(model, torch.randn(4, 6, dtype=torch.bfloat16))
    with pytest.raises(fp.FxpruneError, match="computes something other"):
        fp.write_back(model, plan)


def test_hidden_states_of_a_llama(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.arange(16).reshape(2, 8)
    program = fp.capture(model, tokens, {"use_cache": False})
    plan = fp.plan(program, {"model.embed_tokens.weight": (1, range(0, 32, 4))})
    smaller = fp.write_back(model, plan)
    assert smaller.config.hidden_size == 24
    assert smaller.config.rms_norm_eps == pytest.approx(1e-6 * 32 / 24)
    assert smaller.model.norm.variance_epsilon == smaller.config.rms_norm_eps
    small = fp.shrink(program, plan)
    torch.testing.assert_close(smaller(tokens).logits, small.module(tokens, use_cache=False)[0])
    smaller.save_pretrained(tmp_path)
    read = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(read(tokens).logits, smaller(tokens).logits)
