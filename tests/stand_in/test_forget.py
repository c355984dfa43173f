"""Tests of fxprune.stand_in.forget: what modules keep of a forward in eval mode."""

from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.stand_in import forget, stand_in


class Attention(nn.Module):
    """Looks its biases up once in eval mode, as LeViT does."""

    places: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 4, 3
        self.qkv, self.out = nn.Linear(6, 36), nn.Linear(12, 2)
        self.biases = nn.Parameter(torch.randn(4, 5))
        self.register_buffer("places", torch.arange(25).reshape(5, 5) % 5, persistent=False)
        self.kept: dict[str, torch.Tensor] = {}

    def train(self, mode: bool = True) -> Any:
        if mode:
            self.kept = {}
        return super().train(mode)

    def looked_up(self) -> torch.Tensor:
        if self.training:
            return self.biases[:, self.places]
        return self.kept.setdefault("biases", self.biases[:, self.places])

    def forward(self, x: torch.Tensor) -> Any:
        q, k, v = self.qkv(x).view(*x.shape[:2], self.heads, -1).split([self.size] * 3, 3)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / self.size**0.5 + self.looked_up()
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        return self.out(mixed.reshape(*x.shape[:2], self.heads * self.size))


def ran() -> tuple[Attention, torch.Tensor]:
    """A model that has kept something of a forward, and its input."""
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(2, 5, 6)
    with torch.no_grad():
        model(x)
    assert model.kept
    return model, x


def test_the_modes_stay() -> None:
    model = nn.Sequential(ran()[0], nn.Dropout()).eval()
    model[1].train()
    forget(model)
    assert not model[0].kept
    assert [m.training for m in model.modules()] == [False, False, False, False, True]


def test_a_stand_in_has_forgotten_and_the_model_has_not() -> None:
    model, _ = ran()
    with stand_in(model) as twin:
        assert not twin.kept
    assert model.kept


def test_what_train_does_elsewhere_is_not_done() -> None:
    class Merging(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Any:
            pytest.fail("it was asked")

    forget(Merging(3))


def test_a_train_that_fails_leaves_the_modes() -> None:
    class Failing(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            raise RuntimeError

    model = Failing(2, 2)
    model.training, vars(model)["kept"] = False, torch.zeros(2)
    forget(model)
    assert not model.training


def test_heads_go_after_the_model_has_run() -> None:
    model, x = ran()
    program = fp.capture(model, x)
    assert "biases" in program.tensors()
    (heads,) = (g for g in fp.groups(program) if any(m.param == "biases" for m in g.members))
    plan = fp.plan(program, heads.units[:1])
    smaller = fp.write_back(model, plan)
    assert smaller.heads == 3
    assert not smaller.kept
    torch.testing.assert_close(smaller(x), fp.shrink(program, plan)(x))
    assert model.kept["biases"].shape == (4, 5, 5)
