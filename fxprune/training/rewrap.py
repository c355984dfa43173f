"""Wraps a network again after a shrinking."""

from __future__ import annotations

from typing import Any

from torch.nn.parallel import DistributedDataParallel

from fxprune.training.errors import TrainingError
from fxprune.training.shrinker import Shrinker


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
