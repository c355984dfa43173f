"""Tests of fxprune.write_back.scale: the scale of attention as a factor of the queries."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune as fp
from fxprune.write_back import written


class Attention(nn.Module):
    """Attention with two heads of eight channels, which takes its scale from an attribute or a size.

    Args:
        how: `attribute`, `whole`, `default`, `shape` or `mup`.
        normed: whether queries and keys are normed.
        fused: whether one layer makes queries, keys and values.
    """

    def __init__(self, how: str, *, normed: bool = False, fused: bool = False) -> None:
        super().__init__()
        self.how, self.scale, self.head_dim = how, 8**-0.5, 8
        self.inputs = nn.ModuleList([nn.Linear(16, 48)] if fused else _linears(3))
        self.norms = nn.ModuleList(nn.LayerNorm(8) if normed else nn.Identity() for _ in range(2))
        self.out = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> Any:
        if len(self.inputs) == 1:
            parts = self.inputs[0](x).reshape(*x.shape[:2], 3, 2, -1)
            q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(x).view(*x.shape[:2], 2, -1).transpose(1, 2) for f in self.inputs)
        q, k = self.norms[0](q), self.norms[1](k)
        if self.how == "default":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-1, -2) * self.factor(q)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))

    def factor(self, q: torch.Tensor) -> float:
        size = {"whole": self.head_dim, "shape": q.shape[-1], "mup": q.shape[-1] ** 2}
        return size[self.how] ** -0.5 if self.how in size else self.scale


def _linears(count: int) -> list[nn.Module]:
    return [nn.Linear(16, 16) for _ in range(count)]


def narrowed(model: nn.Module, x: torch.Tensor) -> tuple[fp.Plan, fp.Program]:
    """Every group of the channels of a head loses three of eight."""
    program = fp.capture(model, x)
    groups = [g for g in fp.groups(program) if g.name.startswith("inputs") and len(g) == 8]
    plan = fp.plan(program, [u for g in groups for u in g.units[:3]])
    return plan, fp.shrink(program, plan)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("how", ["attribute", "whole", "default", "shape", "mup"])
def test_narrow_heads_keep_their_scale(how: str, normed: bool, fused: bool) -> None:
    torch.manual_seed(0)
    model = Attention(how, normed=normed, fused=fused).eval().double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    plan, small = narrowed(model, x)
    result = written(model, plan)
    torch.testing.assert_close(result.model(x), small(x), rtol=1e-12, atol=1e-12)
    factor = {"attribute": None, "mup": 5 / 8}.get(how, (5 / 8) ** 0.5)
    module = "norms.0" if normed else "inputs.0"
    wanted = {} if factor is None else {f"{module}.weight": factor, f"{module}.bias": factor}
    assert {f.name: f.factor for f in result.folds} == pytest.approx(wanted)
    values = result.folds.of(small.tensors())
    for name, tensor in result.model.state_dict().items():
        torch.testing.assert_close(tensor, values[name], rtol=0, atol=0)


def test_a_product_of_a_value_with_itself_shares_the_factor() -> None:
    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inputs, self.out = nn.ModuleList([nn.Linear(6, 8)]), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> Any:
            q = self.inputs[0](x)
            return self.out((q @ q.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1))

    model = Gram().eval()
    x = torch.randn(2, 5, 6)
    plan, small = narrowed(model, x)
    torch.testing.assert_close(fp.write_back(model, plan)(x), small(x))


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.5, 1.0])
def test_a_product_with_a_power_of_the_width(power: float) -> None:
    class Last(nn.Module):
        """Scales its last states, as T5 does."""

        def __init__(self) -> None:
            super().__init__()
            self.inputs, self.norm = nn.ModuleList([nn.Linear(6, 8)]), nn.LayerNorm(8)
            self.out = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.norm(self.inputs[0](x))
            return self.out(y * y.shape[-1] ** power) + self.out(y / y.shape[-1] ** power)

    class Once(Last):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.norm(self.inputs[0](x))
            return self.out(y * y.shape[-1] ** power)

    x = torch.randn(2, 5, 6)
    model = Once().eval()
    plan, small = narrowed(model, x)
    result = written(model, plan)
    torch.testing.assert_close(result.model(x), small(x))
    assert {f.name for f in result.folds} == {"norm.weight", "norm.bias"}
    assert result.folds[0].factor == pytest.approx((8 / 5) ** power)
    plan, _ = narrowed(Last().eval(), x)
    with pytest.raises(fp.FxpruneError, match="something other"):
        fp.write_back(Last().eval(), plan)


def test_what_is_not_proportional_is_refused() -> None:
    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inputs = nn.ModuleList(nn.Linear(16, 8) for _ in range(2))
            self.out = nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> Any:
            q, k = (f(x).tanh().unsqueeze(1) for f in self.inputs)
            return self.out(F.scaled_dot_product_attention(q, k, x.unsqueeze(1)).squeeze(1))

    model = Squashed().eval()
    plan, _ = narrowed(model, torch.randn(2, 5, 16))
    with pytest.raises(fp.FxpruneError, match="cannot express") as error:
        fp.write_back(model, plan)
    assert "scale" in error.value.why


def test_on_meta_there_are_no_weights_to_change() -> None:
    model = Attention("default").eval().to("meta")
    plan, _ = narrowed(model, torch.randn(2, 5, 16))
    assert fp.write_back(model, plan).inputs[0].out_features == 10
