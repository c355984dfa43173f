"""What two processes of torchrun do; see test_agree.py."""

from __future__ import annotations

import copy
import datetime
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fxprune as fp
from fxprune.graph.gate import gates
from fxprune.testing.processes import leave_group
from fxprune.testing.training import ConvNet, capture, make_batches, make_model, train, weights

Tensor = torch.Tensor


def assert_equal_everywhere(tensors: list[Tensor]) -> None:
    flat = torch.cat([t.detach().double().flatten() for t in tensors])
    found = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(found, flat)
    assert all(torch.equal(f, found[0]) for f in found)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    rank = dist.get_rank()
    program = capture(make_model(ConvNet), "insert-gates")
    optimizer = torch.optim.AdamW(weights(program), 0.01)
    ddp = DistributedDataParallel(program.module, gradient_as_bucket_view=True)
    shrinker = fp.training.Shrinker(program, optimizer)
    train(ddp, optimizer, make_batches(ConvNet, 3, seed=rank))

    mine = fp.plan(program, {"blocks.0.conv1.weight": (0, [rank])})
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(fp.training.TrainingError, match="rank 1 differs from rank 0"):
        fp.training.check_agreed(mine)
    assert str(optimizer.state_dict()) == str(before)

    noise = torch.randn(6, generator=torch.Generator().manual_seed(rank))
    total = fp.training.all_reduced({"score": noise})["score"]
    lowest = total.argsort()[:2].tolist()
    plan = fp.plan(program, {"blocks.0.conv1.weight": (0, lowest)})
    shrinker.apply(fp.training.check_agreed(plan))
    stale, ddp = ddp, fp.training.rewrap(shrinker, ddp)
    with pytest.raises(fp.training.TrainingError, match="wrapper"):
        stale(make_batches(ConvNet, 1)[0][0])
    train(ddp, optimizer, make_batches(ConvNet, 3, seed=10 + rank))

    own = fp.plan(shrinker.program, {"blocks.1.conv1.weight": (0, [0, 3])}) if rank == 0 else None
    shrinker.apply(fp.training.check_agreed(fp.training.broadcast_plan(own)))
    ddp = fp.training.rewrap(shrinker, ddp)
    gates(shrinker.program)["blocks.1.gate"].set(0.0)
    shrinker.run("delete-gated")
    ddp = fp.training.rewrap(shrinker, ddp)
    losses = train(ddp, optimizer, make_batches(ConvNet, 3, seed=20 + rank))
    assert ddp.gradient_as_bucket_view
    states = [v for s in optimizer.state.values() for v in s.values()]
    assert_equal_everywhere([*shrinker.module.parameters(), *states])
    assert len(losses) == 3
    check_sharded()
    if rank == 0:
        sys.stdout.write("agreed\n")
    leave_group()


def check_sharded() -> None:
    """FSDP2 is refused, with the reason."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    program = capture(make_model(ConvNet))
    fully_shard(program.module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(program.module.parameters())
    with pytest.raises(fp.training.TrainingError, match="FSDP2"):
        fp.training.Shrinker(program, optimizer)


if __name__ == "__main__":
    main()
