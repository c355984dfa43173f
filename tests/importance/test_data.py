"""Criteria that read data, what is chosen without a name, and what is said where scores rest on noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune.analysis.cache import solved
from fxprune.errors import OptionError, ScoreError
from fxprune.importance import criterion_names, default_criterion, score_units

X, Y = torch.randn(6, 4), torch.randint(3, (6,))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def scored(model: nn.Module, how: fp.Importance, example: torch.Tensor = X) -> np.ndarray:
    program = fp.capture(model, example)
    groups = fp.groups(program)
    return score_units(program, solved(program), groups, how)[groups[0].units]


def test_wanda_by_hand() -> None:
    model = mlp()
    other = torch.randn(9, 4)
    found = scored(model, fp.Importance("wanda", "sum", normalise="none", data=[X, other]))
    with torch.no_grad():
        first, second = model.get_parameter("0.weight"), model.get_parameter("2.weight")
        layers = nn.Identity(), nn.Sequential(*list(model.children())[:2])
        mean = [(t(X).square().mean(0) + t(other).square().mean(0)) / 2 for t in layers]
        into, hidden = (m.sqrt() for m in mean)
        expected = (first.abs() * into).sum(1) + (second.abs() * hidden).sum(0)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_wanda_meets_the_channels_of_convolutions() -> None:
    torch.manual_seed(0)
    layers: list[Any] = [
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 2, 1),
    ]
    x = torch.randn(2, 3, 9, 9)
    how = fp.Importance("wanda", "sum", normalise="none", data=[x])
    found = scored(nn.Sequential(*layers).eval(), how, x)
    with torch.no_grad():
        inputs = {
            i: nn.Sequential(*layers[:i])(x).square().mean((0, 2, 3)).sqrt() for i in (0, 2, 3)
        }
        first, depthwise, last = (layers[i].weight.abs().sum((2, 3)) for i in (0, 2, 3))
        expected = (
            (first * inputs[0]).sum(1) + depthwise[:, 0] * inputs[2] + (last * inputs[3]).sum(0)
        )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_data_gives_the_same_as_a_loss(name: str) -> None:
    model, batches = mlp(), [(X, Y), (X + 1, Y)]
    by_data = scored(model, fp.Importance(name, data=batches))
    losses = fp.Importance(name, loss=lambda m: [cross_entropy(m(x), y) for x, y in batches])
    np.testing.assert_array_equal(by_data, scored(model, losses))


def test_activations_of_data_and_of_batches() -> None:
    model = mlp()
    by_data = scored(model, fp.Importance("activation", data=[X, X + 1]))
    by_batches = scored(model, fp.Importance("activation", batches=[(X,), (X + 1,)]))
    np.testing.assert_array_equal(by_data, by_batches)


def test_the_default_follows_the_data() -> None:
    model = mlp()
    pairs, inputs = [(X, Y)], [X]
    chosen = default_criterion(None), default_criterion(inputs), default_criterion(pairs)
    assert chosen[0] != chosen[1] == chosen[2]
    assert set(chosen) <= set(criterion_names())
    for data, name in zip((None, inputs, pairs), chosen, strict=True):
        removed = fp.prune(model, X, data=data).plan.removed
        np.testing.assert_array_equal(
            removed, fp.prune(model, X, data=data, importance=name).plan.removed
        )


def test_what_rests_on_noise_is_said() -> None:
    codes = [r.code for r in fp.prune(mlp(), X, importance="activation").remarks]
    assert "score.no-data" in codes
    assert "score.untrained" in codes
    trained = mlp()
    with torch.no_grad():
        trained.get_parameter("0.weight").mul_(1.5)
    codes = [r.code for r in fp.prune(trained, X, importance="activation", data=[X]).remarks]
    assert "score.no-data" not in codes
    assert "score.untrained" not in codes
    assert "score.untrained" not in [
        r.code for r in fp.prune(mlp(), X, importance="random").remarks
    ]


def test_norms_that_were_trained() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    assert "score.untrained" in [r.code for r in fp.prune(model, X).remarks]
    with torch.no_grad():
        model.get_parameter("1.weight").uniform_()
    assert "score.untrained" not in [r.code for r in fp.prune(model, X).remarks]


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "two forms": (
        {"importance": fp.Importance("fisher", loss=lambda m: m(X).sum()), "data": [(X, Y)]},
        OptionError,
        "two forms",
    ),
    "two places": (
        {"importance": fp.Importance("fisher", data=[(X, Y)]), "data": [(X, Y)]},
        OptionError,
        "two places",
    ),
    "no loss": ({"importance": "fisher", "data": [X]}, ScoreError, "needs a loss"),
    "nothing": ({"importance": "fisher"}, ScoreError, "needs a loss"),
    "no criterion": ({"importance": 3}, OptionError, "importance is a int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_does_not_fit(case: str) -> None:
    options, kind, says = REFUSED[case]
    with pytest.raises(kind, match=says):
        fp.prune(mlp(), X, **options)
