"""Observers in replicas of `DistributedDataParallel`."""

from __future__ import annotations

from torch import nn

from fxprune.observe.observer import Observer


def count_apart(module: nn.Module) -> nn.Module:
    """Lets each process of `DistributedDataParallel` count for itself; call it before wrapping the module.

    `DistributedDataParallel` copies the buffers of the first process to all others before every forward
    pass, which would overwrite what the others have counted. `broadcast_buffers=False` prevents this
    too, but for all buffers. Returns the module.
    """
    names = {
        f"{path}.{name}" if path else name
        for path, one in module.named_modules()
        if isinstance(one, Observer)
        for name, _ in one.named_buffers()
    }
    known = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    module._ddp_params_and_buffers_to_ignore = sorted(known | names)  # type: ignore[assignment]
    return module
