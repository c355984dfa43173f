"""Tests of contributions: against loops, every way of searching, small numbers, half precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import fxprune.observe.largest_quotients as search
from fxprune.observe import Contribution

Tensor = torch.Tensor


def by_hand(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Average and largest quotient of terms `[F, M, N]` by a loop over samples, outputs and inputs."""
    samples, outputs, inputs = terms.shape
    total, largest = [0.0] * inputs, [-math.inf] * inputs
    for f, j in itertools.product(range(samples), range(outputs)):
        below = sum(float(terms[f, j, i]) for i in range(inputs))
        for k in range(inputs):
            quotient = float(terms[f, j, k]) / below if below else 0.0
            total[k] += quotient
            largest[k] = max(largest[k], quotient)
    numbers = [[x / samples / outputs for x in total], largest]
    average, top = torch.tensor(numbers, dtype=torch.float64)
    return average, top


# Everything is looked at; only what bounds leave; the same in pieces of one.
WAYS = pytest.mark.parametrize(("many", "chunk"), [(-1.0, 1 << 20), (1.0, 1 << 20), (1.0, 1)])


@WAYS
@pytest.mark.parametrize("signed", [False, True])
def test_contribution_of_a_linear_layer(
    signed: bool, many: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "CHUNK", chunk)
    monkeypatch.setattr(search, "MANY", many)
    monkeypatch.setattr(search, "FIRST", 1)
    rng = torch.Generator().manual_seed(1)
    a = torch.randn(12, 5, generator=rng, dtype=torch.float64)
    w = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    a[2], w[1, 3], a[:, 4] = 0, 0, 0
    one = Contribution(5, signed=signed)
    one(a[:4].reshape(2, 2, 5), 2, w)
    one(a[4:], -1, w)
    terms = a[:, None] * w
    average, largest = by_hand(terms if signed else terms.abs())
    torch.testing.assert_close(one.statistics()["average"], average)
    torch.testing.assert_close(one.statistics()["largest"], largest)
    assert int(one.seen) == 36


@WAYS
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window", [(1, 0, 1), (2, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_contribution_of_a_convolution(
    spatial: int,
    window: tuple[int, int, int],
    groups: int,
    signed: bool,
    many: float,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "CHUNK", chunk)
    monkeypatch.setattr(search, "MANY", many)
    monkeypatch.setattr(search, "FIRST", 1)
    rng = torch.Generator().manual_seed(2)
    a = torch.randn(3, 4, *(7, 6, 3)[:spatial], generator=rng, dtype=torch.float64)
    w = torch.randn(4, 4 // groups, *(3, 2, 1)[:spatial], generator=rng, dtype=torch.float64)
    a[:, 1], a[0] = 0, 0
    each, share = w.shape[1], 4 // groups
    where = [[n] * spatial for n in window]
    one = Contribution(4, signed=signed)
    one(a[:1], 1, w, *where)
    one(a[1:], 1, w, *where)
    x, y = (a, w) if signed else (a.abs(), w.abs())
    convolve = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    for g in range(groups):
        own, rows = x[:, g * each : (g + 1) * each], y[g * share : (g + 1) * share]
        parts = [convolve(own[:, [k]], rows[:, [k]], None, *window) for k in range(each)]
        terms = torch.stack([p.movedim(1, -1).reshape(-1, share) for p in parts], 2)
        average, largest = by_hand(terms)
        found = {n: s[g * each : (g + 1) * each] for n, s in one.statistics().items()}
        torch.testing.assert_close(found["average"], average)
        torch.testing.assert_close(found["largest"], largest)
        assert int(one.seen) == terms.shape[0] * share


def test_shares_in_the_largest_that_bounds_leave_out_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = torch.Generator().manual_seed(5)
    a = torch.randn(8, 6, 9, 9, generator=rng).relu()
    w = torch.randn(10, 6, 3, 3, generator=rng)
    found = []
    for many in (-1.0, 1.0):
        monkeypatch.setattr(search, "MANY", many)
        one = Contribution(6)
        one(a, 1, w, [1, 1], [1, 1], [1, 1])
        found.append(one.statistics())
    torch.testing.assert_close(found[0]["largest"], found[1]["largest"])
    assert torch.equal(found[0]["average"], found[1]["average"])
    assert float(found[0]["average"].sum()) == pytest.approx(1.0)


def test_contributions_are_counted_in_full_precision() -> None:
    value, w = torch.rand(64, 4), torch.rand(7, 4)
    plain, cast = Contribution(4), Contribution(4)
    plain(value, 1, w)
    with torch.autocast("cpu", torch.bfloat16):
        cast(value, 1, w)
    assert torch.equal(cast.total, plain.total)
    assert torch.equal(cast.largest, plain.largest)


def test_sums_so_small_that_their_inverse_overflows_count_as_nothing() -> None:
    one = Contribution(4)
    one(torch.tensor([[1e-40, 0, 0, 0], [1, 2, 3, 4]]), 1, torch.ones(2, 4))
    torch.testing.assert_close(one.total, torch.tensor([0.2, 0.4, 0.6, 0.8]).double())
