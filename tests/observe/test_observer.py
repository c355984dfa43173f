"""Tests of what all observers do: merging, processes, compilation, types, saving."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.multiprocessing.spawn import spawn

import fxprune as fp
from fxprune.errors import OptionError
from fxprune.observe import KINDS, Contribution, Maximum, Mean, Observer, count_apart, observers
from fxprune.pipeline import run_pipeline
from fxprune.testing.processes import leave_group

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


@pytest.mark.parametrize("stat", STATS)
def test_one_sample_without_a_batch_axis(stat: str) -> None:
    value = torch.randn(SIZE, dtype=torch.float64)
    one = KINDS[stat](SIZE)
    one(value, 0, *layer_of(one))
    same(one, fed(stat, value[None]))


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


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    small, data = torch.load(f"{folder}/given", weights_only=False)
    program = run_pipeline(fp.capture(small, data[0][0]), "insert-observers", verify=False).program
    wrapped = nn.parallel.DistributedDataParallel(count_apart(program.module))
    found = observers(program)
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
    leave_group()


def test_two_processes_merge_to_what_one_sees(small: nn.Module, tmp_path: Path) -> None:
    data = [[torch.randn(n, 1, 4, 4) for n in sizes] for sizes in ((2, 3), (4, 1))]
    torch.save((small, data), tmp_path / "given")
    spawn(_process, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    program = run_pipeline(fp.capture(small, data[0][0]), "insert-observers", verify=False).program
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


@pytest.mark.parametrize("stat", STATS)
def test_saved_with_what_they_have_counted(small: nn.Module, stat: str, tmp_path: Path) -> None:
    x = torch.randn(2, 1, 4, 4)
    text = f"insert-observers{{stat={stat}}}"
    program = run_pipeline(fp.capture(small, x), text).program
    program(x)
    fp.save(program, tmp_path / "saved")
    # The name of the package, not of a module inside it: files load when the modules change.
    written = (tmp_path / "saved" / "program.json").read_text()
    assert f'"fxprune.observe:{KINDS[stat].__name__}"' in written
    again = fp.load(tmp_path / "saved")
    for old, new in zip(observers(program).values(), observers(again).values(), strict=True):
        same(old, new)
    assert torch.equal(again(x), program(x))
    assert str(observers(again)) == str(observers(program))
