"""A sharded Shrinker: its checkpoint, and what it refuses; see test_engines.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune.errors import LoadError, ScoreError
from fxprune.testing.several import Engine, batches, own_part, record, residual
from fxprune.training import Shrinker, TrainingError
from fxprune_passes.methods import EntropyGuided, NeuronImportance

REMOVED = (
    {"blocks.0.up.weight": (0, [1, 4, 5]), "stem.weight": (0, [2])},
    {"blocks.1.up.weight": (0, [0])},
)


def make_shrinker(**options: Any) -> Shrinker:
    program = fp.capture(residual(), batches(1, 0)[0][0])
    return Shrinker(program, torch.optim.AdamW(program.module.parameters(), 0.01), **options)


def steps(shrinker: Shrinker, engine: Engine, seed: int) -> None:
    for x, y in batches(2, seed):
        shrinker.optimizer.zero_grad()
        x, y = own_part(x, engine), own_part(y, engine)
        cross_entropy(shrinker.module(x), y).backward()  # type: ignore[no-untyped-call]
        shrinker.optimizer.step()


def write_checkpoint(engine: Engine, folder: Path | None) -> dict[str, torch.Tensor]:
    """Steps, two removals with steps between them, a checkpoint, and more steps."""
    shrinker = make_shrinker()
    if engine == "fsdp":
        shrinker.shard()
    for epoch in range(2):
        steps(shrinker, engine, epoch)
        shrinker.apply(fp.plan(shrinker.program, REMOVED[epoch]))
    if folder is not None:
        model, optimizer = get_state_dict(shrinker.module, shrinker.optimizer)
        save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    steps(shrinker, engine, 7)
    return record(shrinker)


def read_checkpoint(engine: Engine, folder: Path) -> dict[str, torch.Tensor]:
    """Removes the same units from a new network, shards it, reads, and trains on."""
    shrinker = make_shrinker()
    for epoch in range(2):
        shrinker.apply(fp.plan(shrinker.program, REMOVED[epoch]))
    if engine == "fsdp":
        shrinker.shard()
    model, optimizer = get_state_dict(shrinker.module, shrinker.optimizer)
    read = {"model": model, "optimizer": optimizer}
    load(read, checkpoint_id=folder)
    set_state_dict(
        shrinker.module, shrinker.optimizer, model_state_dict=model, optim_state_dict=optimizer
    )
    steps(shrinker, engine, 7)
    return record(shrinker)


def refuse(match: str, error: type[Exception], call: Any) -> None:
    with pytest.raises(error, match=match):
        call()


def check_shrinker_refusals(folder: Path) -> None:
    """What cannot be is refused on every process, and nothing changes."""
    rank = dist.get_rank()
    shrinker = make_shrinker(ema={})
    refuse("averaged weights", TrainingError, shrinker.shard)
    shrinker = make_shrinker()
    refuse("cannot be chosen", TrainingError, lambda: shrinker.shard(ignored_params=set()))
    assert not shrinker.is_sharded
    point = shrinker.point()
    shrinker.shard()
    steps(shrinker, "fsdp", 0)
    before, program = record(shrinker), shrinker.program
    refuse("sharded already", TrainingError, shrinker.shard)
    refuse("before the network was sharded", TrainingError, lambda: shrinker.go_back(point))
    refuse("only a part of the state", TrainingError, shrinker.state_dict)
    refuse("only a part of the state", TrainingError, lambda: shrinker.load_state_dict({}))
    refuse("holds only a part", LoadError, lambda: fp.save(program, folder / "saved"))
    refuse("sharded already", TrainingError, lambda: Shrinker(program, shrinker.optimizer))
    refuse("is sharded", ScoreError, lambda: fp.prune(program, keep=0.5))
    own = fp.plan(program, {"blocks.1.up.weight": (0, [rank])})
    refuse("rank 1 differs from rank 0", TrainingError, lambda: shrinker.apply(own))
    method = EntropyGuided(make_shrinker(), 0.3, verify=False)
    method.shrinker.shard()
    refuse("cannot be masked", TrainingError, method.begin)
    assert shrinker.program is program
    after = record(shrinker)
    assert all(torch.equal(before[name], after[name]) for name in before)


def check_use() -> None:
    """A whole copy can be scored, and what it decides removed; what training gives is whole."""
    shrinker = make_shrinker()
    method = NeuronImportance(shrinker, 0.3, 0.5, warmup=0, verify=False)
    shrinker.shard(reshard_after_forward=False)
    steps(shrinker, "fsdp", 0)
    x = batches(1, 3)[0][0]
    with torch.no_grad():
        shrinker.module(x)  # leaves gathered what nothing has gone backward through
    outcome = fp.prune(shrinker.whole_program(), keep=0.7, metric="params", importance="l1")
    size = len(shrinker.program.tensors()["blocks.0.up.weight"])
    shrinker.apply(outcome.plan)
    assert len(shrinker.program.tensors()["blocks.0.up.weight"]) < size
    found = method.finish_training()
    with torch.no_grad():
        torch.testing.assert_close(found(x), shrinker.module.eval()(x), rtol=0, atol=1e-12)
