"""Shrinking in several processes at once: one decision, one plan, and replicas that stay equal bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fxprune.plan import Plan
from fxprune.training.errors import TrainingError
from fxprune.training.shrinker import Shrinker

Tensor = torch.Tensor


def check_agreed(plan: Plan, group: Any = None) -> Plan:
    """Checks that all processes have the same plan; call it right before `shrinker.apply(plan)`.

    Args:
        plan: the plan that this process is about to apply.
        group: the process group, by default the global one. Without distributed training, nothing is checked.

    Returns:
        The plan.

    Raises:
        TrainingError: the plans differ; raised on every process.
    """
    if not dist.is_initialized():
        return plan
    digests: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(digests, plan.digest, group=group)
    if len(set(digests)) > 1:
        odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        raise TrainingError(
            "the processes have different plans",
            where=f"rank {', '.join(map(str, odd))} differs from rank 0",
            why="each process decided by statistics of its own batches, or drew different random numbers",
            do="decide by fp.training.all_reduced(statistics), or let rank 0 decide and call broadcast_plan(plan)",
        )
    return plan


def broadcast_plan(plan: Plan | None, source: int = 0, group: Any = None) -> Plan:
    """Returns the plan of one process on all processes.

    Args:
        plan: the plan, on the source; ignored on the other processes.
        source: the global rank of the process that decides.
        group: see `check_agreed`.

    Raises:
        TrainingError: the source has no plan.
    """
    if not dist.is_initialized():
        if plan is None:
            raise TrainingError("there is no plan", do="pass a plan: this is the only process")
        return plan
    own = dist.get_rank() == source
    if own and plan is not None:
        plan = replace(plan, program=None)
    box: list[Plan | None] = [plan if own else None]
    dist.broadcast_object_list(box, src=source, group=group)
    if box[0] is None:
        raise TrainingError(
            "there is no plan", where=f"rank {source}", do="pass a plan on that rank"
        )
    return box[0]


@torch.no_grad()
def all_reduced(statistics: Mapping[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """Returns the sums of statistics over all processes, so that all processes decide alike.

    Args:
        statistics: tensors by name, with the same names and shapes on every process; they do not change.
        group: see `check_agreed`.
    """
    found = {name: statistics[name].detach().clone() for name in sorted(statistics)}
    if dist.is_initialized():
        for tensor in found.values():
            dist.all_reduce(tensor, group=group)
    return found


def rewrap(shrinker: Shrinker, ddp: DistributedDataParallel) -> DistributedDataParallel:
    """Wraps the current network in a `DistributedDataParallel` with the options of the previous wrapper.

    A wrapper lays out its buckets for the parameters it was created with, so that every shrinking needs a
    new wrapper. The previous one refuses to run from then on. Communication hooks are registered again.

    Args:
        shrinker: the shrinker after a shrinking; call this function on every process.
        ddp: the previous wrapper.
    """
    if ddp.module is shrinker.module:
        return ddp
    devices = None if ddp.device_ids is None else list(ddp.device_ids)
    wrapped = DistributedDataParallel(
        shrinker.module,
        device_ids=devices,
        output_device=ddp.output_device,
        broadcast_buffers=ddp.broadcast_buffers,
        process_group=ddp.process_group,
        bucket_cap_mb=ddp.bucket_bytes_cap / 2**20,
        find_unused_parameters=ddp.find_unused_parameters,
        gradient_as_bucket_view=ddp.gradient_as_bucket_view,
        static_graph=ddp.static_graph,
    )
    for hook, state in ddp._comm_hooks:
        wrapped.register_comm_hook(state, hook)
    ddp.register_forward_pre_hook(_refuse)
    return wrapped


def _refuse(*_: Any) -> None:
    raise TrainingError(
        "this DDP wrapper belongs to the network before a shrinking",
        why="its buckets were laid out for parameters that no longer exist",
        do="use the wrapper that fp.training.rewrap(shrinker, ddp) returned",
    )
