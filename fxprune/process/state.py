"""The modes of torch in which our code runs, and those in which the user's model does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from fxprune.process.lock import alone
from fxprune.process.random_state import random_state_kept

_CPU = torch.device("cpu")
_AUTOCAST = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia")
_callers = threading.local()


@contextmanager
def plain_modes() -> Iterator[None]:
    """No inference mode, no autocast, and the CPU as the default device, whatever the caller has chosen.

    Serves as a decorator too.
    """
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        for kind in filter(torch.is_autocast_enabled, _AUTOCAST):
            modes.enter_context(torch.autocast(kind, enabled=False))
        if (device := torch.get_default_device()) != _CPU:
            before = getattr(_callers, "device", _CPU)
            _callers.device = device
            modes.callback(setattr, _callers, "device", before)
            modes.enter_context(_CPU)
        yield


@contextmanager
def callers_device() -> Iterator[None]:
    """The default device that the caller of `plain_modes` had chosen: a model may rely on it."""
    device = getattr(_callers, "device", _CPU)
    if device == torch.get_default_device():
        yield
    else:
        with device:
            yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Plain modes and the lock, around what runs a model; afterwards every setting is as it was.

    Random states, gradients, default dtype, determinism; attention takes no fast path meanwhile, which
    would be one operator without parts. Serves as a decorator too.
    """
    with alone(), plain_modes(), random_state_kept(), ExitStack() as after:
        after.callback(torch.set_default_dtype, torch.get_default_dtype())
        after.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        after.callback(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        after.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        yield
