"""Sharded tensors (torch's `DTensor`): the whole of one, and the part of a whole that this process holds."""

from __future__ import annotations

import sys
from typing import Any

import torch

from fxprune.errors import FxpruneError

Tensor = torch.Tensor


class ShardError(FxpruneError):
    """A sharded tensor cannot be gathered, cut or sharded again."""


def is_sharded(tensor: object) -> bool:
    """Returns whether a tensor is a `DTensor`, of which each process holds a part, or a copy."""
    module: Any = sys.modules.get("torch.distributed.tensor")  # without it there is no such tensor
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Returns all values of a tensor, without a gradient; all processes of its mesh have to call it.

    Args:
        tensor: a sharded tensor, which is gathered, or a plain one, which is returned as it is.
    """
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():
        found: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return found


def part_like(full: Tensor, like: Any, where: str = "") -> Tensor:
    """Returns a sharded tensor of the values of `full`, laid out as another one; nothing is sent.

    Args:
        full: the whole values, equal on all processes. An axis that its processes do not divide has shorter last parts.
        like: the sharded tensor whose mesh and placements are taken.
        where: the name of the tensor, for errors.

    Raises:
        ShardError: the tensor holds partial sums, or two dimensions of the mesh shard one axis in turn.
    """
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    if any(type(p) not in (Shard, Replicate) for p in like.placements):
        raise ShardError(
            f"a tensor is laid out as {like.placements}",
            where=where,
            why="only whole copies and plain shards can be made again from the whole tensor",
            do="shard each axis over one dimension of the mesh",
        )
    placed: Tensor = distribute_tensor(
        full.contiguous(), like.device_mesh, like.placements, src_data_rank=None
    )
    return placed.detach().clone()  # the parts are views, which would keep the whole
