"""Tests of fxprune.observe: statistics against brute force, merging, compilation, types, processes."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.multiprocessing.spawn import spawn

import fxprune as fp
import fxprune.observe as module
from fxprune.errors import OptionError
from fxprune.evaluate import Evaluator
from fxprune.observe import (
    KINDS,
    Contribution,
    Covariance,
    Maximum,
    Mean,
    Observer,
    OnFraction,
    count_apart,
    observers,
)
from fxprune.pipeline import run_pipeline

Tensor = torch.Tensor
STATS = ("on-fraction", "mean", "max", "covariance", "contribution")
SIZE = 4


def layer_of(one: Observer) -> tuple[Any, ...]:
    """What an observer is told besides the value: for contributions a weight."""
    if not isinstance(one, Contribution):
        return ()
    return (torch.arange(12, dtype=torch.float64).reshape(3, SIZE) / 7 - 0.8,)


def fed(stat: str, *batches: Tensor) -> Observer:
    one = KINDS[stat](SIZE)
    for batch in batches:
        one(batch, -1, *layer_of(one))
    return one


def same(a: Observer, b: Observer) -> None:
    """Counts are equal, sums but for rounding."""
    for name, buffer in a.named_buffers():
        other = b.get_buffer(name)
        if buffer.dtype == torch.int64:
            assert torch.equal(buffer, other), name
        else:
            torch.testing.assert_close(buffer, other, rtol=1e-12, atol=1e-12)


def batches(seed: int, count: int) -> list[Tensor]:
    """Batches of unequal sizes and means; one is empty."""
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (count,), generator=rng).tolist()
    found = [torch.randn(n, 3, SIZE, generator=rng, dtype=torch.float64) + n for n in sizes]
    return [*found, torch.empty(0, 3, SIZE, dtype=torch.float64)]


@pytest.mark.parametrize("stat", STATS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 5))
def test_batches_merge_to_what_all_data_at_once_gives(stat: str, seed: int, count: int) -> None:
    parts = batches(seed, count)
    whole = fed(stat, torch.cat(parts))
    same(fed(stat, *parts), whole)
    merged = KINDS[stat](SIZE)
    for part in parts:
        merged.merge(fed(stat, part))
    same(merged, whole)
    if stat == "covariance":
        rows = torch.cat(parts).reshape(-1, SIZE)
        found = whole.statistics()
        torch.testing.assert_close(found["covariance"], torch.cov(rows.T, correction=0))
        torch.testing.assert_close(found["mean"], rows.mean(0))


def test_far_from_zero_the_covariance_keeps_its_digits() -> None:
    rng = torch.Generator().manual_seed(0)
    parts = [torch.randn(50, SIZE, generator=rng, dtype=torch.float64) + 1e8 for _ in range(20)]
    found = fed("covariance", *parts).statistics()["covariance"]
    torch.testing.assert_close(
        found, torch.cov(torch.cat(parts).T, correction=0), rtol=1e-6, atol=1e-6
    )


def test_on_fraction_counts_samples_and_positions() -> None:
    value = torch.randn(5, 3, 4, 2)
    value[0, 0, 0, 0] = 0.0  # 0 is off
    one = OnFraction(3)
    assert one(value, 1) is value
    assert int(one.seen) == 5 * 4 * 2
    assert one.on.tolist() == [int((value[:, c] > 0).sum()) for c in range(3)]
    torch.testing.assert_close(one.fraction(), (value > 0).double().mean((0, 2, 3)))


def test_entropy_is_that_of_a_coin() -> None:
    one = OnFraction(5)
    one.seen.fill_(8)
    one.on.copy_(torch.tensor([0, 1, 4, 7, 8]))

    def coin(p: float) -> float:
        return -sum(x * math.log2(x) for x in (p, 1 - p) if x)

    wanted = [coin(k / 8) for k in (0, 1, 4, 7, 8)]
    torch.testing.assert_close(one.entropy(), torch.tensor(wanted, dtype=torch.float64))
    assert one.layer_entropy() == pytest.approx(sum(wanted[1:4]) / 3)
    assert one.layer_entropy(plain=True) == pytest.approx(sum(wanted) / 5)
    one.on.fill_(8)
    assert one.layer_entropy() == 0.0


def test_mean_and_maximum() -> None:
    value = torch.randn(6, 7, SIZE)
    torch.testing.assert_close(fed("mean", value).statistics()["mean"], value.double().mean((0, 1)))
    torch.testing.assert_close(fed("max", value).statistics()["max"], value.double().amax((0, 1)))
    whole = Mean()
    whole(value)
    assert float(whole.statistics()["mean"]) == pytest.approx(float(value.double().mean()))
    largest = Maximum()
    largest(torch.tensor(-3.0))
    assert largest.table() == {"stat": "max", "seen": 1, "max": -3.0}


@pytest.mark.parametrize("stat", STATS)
def test_one_sample_without_a_batch_axis(stat: str) -> None:
    value = torch.randn(SIZE, dtype=torch.float64)
    one = KINDS[stat](SIZE)
    one(value, 0, *layer_of(one))
    same(one, fed(stat, value[None]))


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
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "MANY", many)
    monkeypatch.setattr(module, "FIRST", 1)
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
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "MANY", many)
    monkeypatch.setattr(module, "FIRST", 1)
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
        monkeypatch.setattr(module, "MANY", many)
        one = Contribution(6)
        one(a, 1, w, [1, 1], [1, 1], [1, 1])
        found.append(one.statistics())
    torch.testing.assert_close(found[0]["largest"], found[1]["largest"])
    assert torch.equal(found[0]["average"], found[1]["average"])
    assert float(found[0]["average"].sum()) == pytest.approx(1.0)


def test_contributions_are_counted_in_full_precision() -> None:
    value, w = torch.rand(64, SIZE), torch.rand(7, SIZE)
    plain, cast = Contribution(SIZE), Contribution(SIZE)
    plain(value, 1, w)
    with torch.autocast("cpu", torch.bfloat16):
        cast(value, 1, w)
    assert torch.equal(cast.total, plain.total)
    assert torch.equal(cast.largest, plain.largest)


def test_sums_so_small_that_their_inverse_overflows_count_as_nothing() -> None:
    one = Contribution(SIZE)
    one(torch.tensor([[1e-40, 0, 0, 0], [1, 2, 3, 4]]), 1, torch.ones(2, SIZE))
    torch.testing.assert_close(one.total, torch.tensor([0.2, 0.4, 0.6, 0.8]).double())


@pytest.mark.parametrize("stat", STATS)
def test_gradients_types_and_copies_are_left_alone(stat: str) -> None:
    one = KINDS[stat](SIZE)
    value = torch.randn(5, SIZE, requires_grad=True)
    (one(value, 1, *layer_of(one)) ** 2).sum().backward()
    assert value.grad is not None
    torch.testing.assert_close(value.grad, 2 * value.detach())
    assert not any(b.requires_grad for b in one.buffers())
    types = {name: b.dtype for name, b in one.named_buffers()}
    before = copy.deepcopy(one)
    one.bfloat16()
    assert {name: b.dtype for name, b in one.named_buffers()} == types
    same(one, before)
    half = torch.randn(3, SIZE).bfloat16()
    assert one(half, 1, *layer_of(one)).dtype == torch.bfloat16
    assert int(one.seen) > int(before.seen)


@pytest.mark.parametrize("stat", STATS)
def test_state_dict_frozen_and_reset(stat: str) -> None:
    one = fed(stat, *batches(3, 2))
    other = KINDS[stat](SIZE)
    other.load_state_dict(one.state_dict())
    same(one, other)
    one.freeze()(torch.randn(2, SIZE), 1, *layer_of(one))
    same(one, other)
    json.dumps(one.table())
    same(one.reset(), KINDS[stat](SIZE))
    assert all(math.isnan(x) for x in one.statistics().popitem()[1].reshape(-1).tolist())
    one.train()(torch.randn(2, SIZE), 1, *layer_of(one))
    assert int(one.seen) > 0


def test_only_like_is_merged_with_like() -> None:
    with pytest.raises(OptionError, match="cannot be merged"):
        Mean(3).merge(Maximum(3))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="different numbers of units"):
        Mean(3).merge(Mean(4))


class Watched(nn.Module):
    def __init__(self, one: Observer) -> None:
        super().__init__()
        self.one, self.layer = one, layer_of(one)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(torch.relu(x) * 2, -1, *self.layer).sum()


@pytest.mark.parametrize("stat", STATS)
def test_compiles_as_one_graph(stat: str) -> None:
    torch._dynamo.reset()
    x = torch.randn(6, SIZE, requires_grad=True)
    compiled = torch.compile(Watched(one := KINDS[stat](SIZE)), fullgraph=True, backend="aot_eager")
    compiled(x).backward()
    compiled(x[:4].detach())
    plain = Watched(KINDS[stat](SIZE))
    plain(x)
    plain(x[:4].detach())
    same(one, plain.one)
    torch._dynamo.reset()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.act = nn.ReLU()
        self.one, self.two = nn.Linear(6 * 16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x)).flatten(1)
        return self.two(torch.relu(self.one(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checks_do_not_count(dtype: torch.dtype) -> None:
    x = torch.randn(2, 1, 4, 4)
    program = run_pipeline(fp.capture(Small().eval(), x), "insert-observers").program
    Evaluator(program, dtype).evaluate((x,), {})
    assert all(int(o.seen) == 0 for o in observers(program).values())
    program(x)
    assert [int(o.seen) for o in observers(program).values()] == [32, 2]


def test_a_table_of_all_observers() -> None:
    x = torch.randn(2, 1, 4, 4)
    program = run_pipeline(
        fp.capture(Small().eval(), x), "insert-observers{stat=covariance}"
    ).program
    found = observers(program)
    assert "null" in json.dumps(found.to_json())
    program(x)
    assert "act.observer" in str(found)
    assert found.to_json()["act.observer"]["seen"] == 32
    found.freeze()
    program(x)
    assert int(found["act.observer"].seen) == 32
    assert int(found.reset()["act.observer"].seen) == 0
    assert str(observers(fp.capture(Small().eval(), x))) == "no observers"


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    program = run_pipeline(
        fp.capture(Small(), torch.randn(2, 1, 4, 4)), "insert-observers", verify=False
    ).program
    wrapped = nn.parallel.DistributedDataParallel(count_apart(program.module))
    found = observers(program)
    data = torch.load(f"{folder}/data")
    for part in data[rank]:
        wrapped(part).sum().backward()
    torch.save([x.module.state_dict() for x in (wrapped,)], f"{folder}/own{rank}")
    for one in (*found.values(), *(others := [fed(s, *batches(rank, 2 + rank)) for s in STATS])):
        one.all_reduce()
        one.all_reduce()
    torch.save(
        [[o.state_dict() for o in found.values()], [o.state_dict() for o in others]],
        f"{folder}/out{rank}",
    )
    del wrapped  # its reducer holds the group, whose threads must end before the process does
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_merge_to_what_one_sees(tmp_path: Path) -> None:
    data = [[torch.randn(n, 1, 4, 4) for n in sizes] for sizes in ((2, 3), (4, 1))]
    torch.save(data, tmp_path / "data")
    spawn(_process, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    program = run_pipeline(
        fp.capture(Small(), torch.randn(2, 1, 4, 4)), "insert-observers", verify=False
    ).program
    for part in (p for parts in data for p in parts):
        program(part)
    for rank in (0, 1):
        inside, others = torch.load(tmp_path / f"out{rank}")
        for one, state in zip(observers(program).values(), inside, strict=True):
            assert torch.equal(one.get_buffer("on"), state["on"])
            assert int(one.seen) == int(state["seen"])
        for stat, state in zip(STATS, others, strict=True):
            merged = KINDS[stat](SIZE)
            merged.load_state_dict(state)
            same(merged, fed(stat, *batches(0, 2), *batches(1, 3)))


def test_without_processes_a_reduction_only_stops() -> None:
    one = fed("mean", torch.ones(3, SIZE))
    one.all_reduce()
    one(torch.ones(3, SIZE), 1)
    assert int(one.seen) == 3


def test_covariance_shrinks_in_both_axes() -> None:
    x = torch.randn(2, 1, 4, 4)
    program = run_pipeline(
        fp.capture(Small().eval(), x), "insert-observers{stat=covariance}"
    ).program
    program(x)
    old = observers(program)["act.observer"]
    assert isinstance(old, Covariance)
    small = fp.shrink(program, fp.plan(program, {"conv.weight": (0, [1, 4])}))
    new = observers(small)["act.observer"]
    assert isinstance(new, Covariance)
    kept = torch.tensor([0, 2, 3, 5])
    assert torch.equal(new.scatter, old.scatter[kept][:, kept])
    assert torch.equal(new.average, old.average[kept])
    small(x)
    assert int(new.seen) == 64
    assert int(old.seen) == 32


@pytest.mark.parametrize("stat", STATS)
def test_saved_with_what_they_have_counted(stat: str, tmp_path: Path) -> None:
    x = torch.randn(2, 1, 4, 4)
    text = f"insert-observers{{stat={stat}}}"
    program = run_pipeline(fp.capture(Small().eval(), x), text).program
    program(x)
    fp.save(program, tmp_path / "saved")
    again = fp.load(tmp_path / "saved")
    for old, new in zip(observers(program).values(), observers(again).values(), strict=True):
        same(old, new)
    assert torch.equal(again(x), program(x))
    assert str(observers(again)) == str(observers(program))
