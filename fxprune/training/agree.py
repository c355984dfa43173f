"""Shrinking in several processes at once: one decision, one plan, and replicas that stay equal bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from fxprune.plan import Plan
from fxprune.training.errors import TrainingError

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
    check_equal(plan.digest, "plans", group)
    return plan


def check_equal(digest: str, what: str, group: Any = None) -> None:
    """Checks that all processes have the same digest of something that they have decided.

    Args:
        digest: the digest of this process.
        what: what it is of, in the plural.
        group: see `check_agreed`.

    Raises:
        TrainingError: the digests differ; raised on every process.
    """
    if not dist.is_initialized():
        return
    digests: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(digests, digest, group=group)
    if len(set(digests)) > 1:
        odd = [rank for rank, other in enumerate(digests) if other != digests[0]]
        raise TrainingError(
            f"the processes have different {what}",
            where=f"rank {', '.join(map(str, odd))} differs from rank 0",
            why="each process decided by statistics of its own batches, or drew different random numbers",
            do="decide by fp.training.all_reduced(statistics), or let rank 0 decide and call broadcast_plan(plan)",
        )


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
