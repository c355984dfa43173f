"""Shrinking on several processes at once: one decision, one plan, replicas that stay equal bit by bit."""

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
    """Compares the plan's hash on all processes; call it right before `shrinker.apply(plan)`.

    Args:
        plan: what this process wants to apply.
        group: process group; the default one where None. Without distributed training nothing is done.

    Raises:
        TrainingError: on every process, where one has another plan.
    """
    if not dist.is_initialized():
        return plan
    digests: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(digests, plan.digest, group=group)
    if len(set(digests)) > 1:
        odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        raise TrainingError(
            "the processes have different plans",
            where=f"rank {', '.join(map(str, odd))} against rank 0",
            why="they decided by statistics of their own batches, or drew other random numbers",
            do="decide by fp.training.all_reduced(statistics), or let rank 0 decide: broadcast_plan(plan)",
        )
    return plan


def broadcast_plan(plan: Plan | None, source: int = 0, group: Any = None) -> Plan:
    """The plan of one process, on all of them.

    Args:
        plan: on the source the plan; elsewhere nothing is read.
        source: global rank that decides.
        group: see `check_agreed`.
    """
    if not dist.is_initialized():
        if plan is None:
            raise TrainingError("there is no plan", do="give one: this is the only process")
        return plan
    own = dist.get_rank() == source
    if own and plan is not None:
        plan = replace(plan, program=None)
    box: list[Plan | None] = [plan if own else None]
    dist.broadcast_object_list(box, src=source, group=group)
    if box[0] is None:
        raise TrainingError("there is no plan", where=f"rank {source}", do="give one there")
    return box[0]


@torch.no_grad()
def all_reduced(statistics: Mapping[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """Sums of statistics over all processes: equal everywhere, so that decisions by them are.

    Args:
        statistics: by name, the same names and shapes on every process; they stay as they are.
        group: see `check_agreed`.
    """
    found = {name: statistics[name].detach().clone() for name in sorted(statistics)}
    if dist.is_initialized():
        for tensor in found.values():
            dist.all_reduce(tensor, group=group)
    return found


def rewrap(shrinker: Shrinker, ddp: DistributedDataParallel) -> DistributedDataParallel:
    """A DistributedDataParallel around the network as it is now, with the options of the one before.

    Buckets are laid out for the parameters that a wrapper was made with, so that each shrinking needs
    another wrapper. The one before refuses to run from now on. Communication hooks are registered again.

    Args:
        shrinker: after a shrinking; call this on every process.
        ddp: the wrapper of the network before.
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
        "this DDP wrapper is of the network before a shrinking",
        why="its buckets are laid out for parameters that are gone",
        do="use what fp.training.rewrap(shrinker, ddp) returned",
    )
