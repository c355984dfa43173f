"""A sharded module of the user's own class is shrunk, and its checkpoint read by others; see test_own_class.py."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune.distributed import is_sharded, whole
from fxprune.graph.program import Program, named_tensors
from fxprune.plan import Plan
from fxprune.testing.several import BATCH, Decoder, decoder
from fxprune.training import Shrinker, TrainingError, shrink_sharded

Tensor = torch.Tensor
HEADS = [2, 3, 6, 7, 8, 9, 12, 13]
INNER = [0, 5, 6, 7, 9, 10, 13, 15]
EVEN = {"layers.0.q.weight": (0, HEADS), "layers.1.up.weight": (0, INNER)}
UNEVEN = {**EVEN, "layers.0.up.weight": (0, [1, 2, 9])}


def ids(seed: int) -> Tensor:
    return torch.randint(11, (BATCH, 5), generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range, part: Any
) -> list[float]:
    losses = []
    for seed in seeds:
        optimizer.zero_grad()
        loss = loss_of(model, part(ids(seed)))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    optimizer.zero_grad()
    return losses


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)


def skeleton() -> nn.Module:
    with torch.device("meta"):
        return Decoder().double().train()


@cache
def skeleton_program() -> Program:
    return fp.capture(skeleton(), ids(0).to("meta"))


def plan_of(removed: Any) -> Plan:
    """A plan that is made without weights, as if it were read from a file."""
    return replace(fp.plan(skeleton_program(), removed), program=None)


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {name: whole(t).clone() for name, t in named_tensors(model).items()}
    for name, p in model.named_parameters():
        for key, value in optimizer.state[p].items():
            found[f"{name} {key}"] = whole(value).clone()
    return found


@cache
def alone(uneven: bool) -> dict[str, Any]:
    """One process, by a Shrinker."""
    removed = UNEVEN if uneven else EVEN
    program = fp.capture(decoder(), ids(0))
    optimizer = adamw(program.module)
    shrinker = Shrinker(program, optimizer)
    losses = steps(shrinker.module, optimizer, range(3), lambda x: x)
    shrinker.apply(fp.plan(program, removed), verify=True)
    losses += steps(shrinker.module, optimizer, range(3, 6), lambda x: x)
    at_six = tensors_of(shrinker.module, optimizer)
    losses += steps(shrinker.module, optimizer, range(6, 8), lambda x: x)
    return {"losses": losses, "at six": at_six, "tensors": tensors_of(shrinker.module, optimizer)}


def shard_layers(model: nn.Module) -> None:
    """FSDP2, layer by layer."""
    for layer in model.get_submodule("layers").children():
        fully_shard(layer)
    fully_shard(model)


def parallelize(model: nn.Module) -> None:
    """Tensor parallel layers."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    styles: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in ("q", "k", "v", "up")}
    styles |= {name: RowwiseParallel() for name in ("o", "down")}
    for layer in model.get_submodule("layers").children():
        parallelize_module(layer, mesh, styles)


def own(x: Tensor) -> Tensor:
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def all_of(x: Tensor) -> Tensor:
    return x


def mean(losses: list[float], part: Any) -> list[float]:
    if part is all_of:
        return losses
    found = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(found)
    return list((found / dist.get_world_size()).tolist())


def check_parts(model: nn.Module) -> None:
    """What each process holds of a tensor does not keep the whole of it in memory."""
    count = dist.get_world_size()
    sharded: list[Any] = [p for p in model.parameters() if is_sharded(p)]
    for p in (p for p in sharded if not p.placements[0].is_replicate()):
        axis = p.placements[0].dim
        part = (
            -(-p.shape[axis] // count) * (p.numel() // p.shape[0])
            if axis == 0
            else p.numel() // count
        )
        assert p.to_local().untyped_storage().nbytes() <= part * p.element_size()


def shrink_in_training(shard: Any, removed: Any, part: Any, folder: Path | None) -> dict[str, Any]:
    """Three steps, a removal, three steps, and a checkpoint; then two more."""
    model = decoder()
    shard(model)
    optimizer = adamw(model)
    losses = steps(model, optimizer, range(3), part)
    with torch.no_grad():
        model(part(ids(9)))  # FSDP leaves gathered what nothing has gone backward through
    plan = plan_of(removed)
    small = shrink_sharded(model, plan, skeleton(), shard, optimizer=optimizer)
    check_parts(small)
    losses += steps(small, optimizer, range(3, 6), part)
    if folder is not None:
        states = get_state_dict(small, optimizer)
        save(dict(zip(("model", "optimizer"), states, strict=True)), checkpoint_id=folder)
    losses += steps(small, optimizer, range(6, 8), part)
    return {"losses": mean(losses, part), "tensors": tensors_of(small, optimizer)}


def read_checkpoint(folder: Path, shard: Any, removed: Any, part: Any) -> dict[str, Any]:
    """Builds the smaller model, shards it over other processes than those that wrote, reads, and trains on."""
    model = fp.write_back(decoder(), plan_of(removed), verify=False)
    shard(model)
    optimizer = adamw(model)
    states = get_state_dict(model, optimizer)
    read: dict[str, Any] = dict(zip(("model", "optimizer"), states, strict=True))
    load(read, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=read["model"], optim_state_dict=read["optimizer"]
    )
    at_six = tensors_of(model, optimizer)
    steps(model, optimizer, range(6, 8), part)
    return {"at six": at_six, "tensors": tensors_of(model, optimizer)}


def check_refusals() -> None:
    """What cannot be is refused, with the reason, and nothing changes."""
    model = decoder()
    parallelize(model)
    optimizer = adamw(model)
    before = tensors_of(model, optimizer)
    for error, plan, bare, shard in (
        ("do not divide", plan_of(UNEVEN), skeleton(), parallelize),
        ("has weights", plan_of(EVEN), decoder(), parallelize),
        ("another way", plan_of(EVEN), skeleton(), shard_layers),
        ("a str cannot", "delete-gated", skeleton(), parallelize),
        ("different plans", _own_plan(), skeleton(), parallelize),
    ):
        with pytest.raises(TrainingError, match=error):
            shrink_sharded(model, plan, bare, shard, optimizer=optimizer)  # type: ignore[arg-type]
    after = tensors_of(model, optimizer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(TrainingError, match="one mesh of one dimension"):
        shrink_sharded(decoder(), plan_of(EVEN), skeleton(), parallelize)
    with pytest.raises(TrainingError, match="sharded already"):
        Shrinker(model, optimizer, args=(ids(0),))


def _own_plan() -> Plan:
    return plan_of({"layers.1.up.weight": (0, [dist.get_rank()])})


def run_models(folder: Path) -> dict[str, Any]:
    """Two processes write a checkpoint, which four read."""
    count = dist.get_world_size()
    found = {
        "tensor parallel": shrink_in_training(parallelize, EVEN, all_of, None),
        "fsdp": shrink_in_training(shard_layers, UNEVEN, own, folder if count == 2 else None),
    }
    if count == 2:
        check_refusals()
    else:
        found["read"] = read_checkpoint(folder, shard_layers, UNEVEN, own)
    return found
