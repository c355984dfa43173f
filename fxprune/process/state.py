"""The modes of torch in which our code runs, and those in which the user's model does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from fxprune.process.lock import alone
from fxprune.process.random_state import random_state_kept

_CPU = torch.device("cpu")
_AUTOCAST = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia")
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    *(
        (partial(get, kind), partial(put, kind))
        for kind in _AUTOCAST
        for get, put in (
            (torch.is_autocast_enabled, torch.set_autocast_enabled),
            (torch.get_autocast_dtype, torch.set_autocast_dtype),
        )
    ),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    *(
        (partial(getattr, torch.backends.cudnn, name), partial(setattr, torch.backends.cudnn, name))
        for name in ("enabled", "benchmark", "deterministic")
    ),
)
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
def settings_kept() -> Iterator[None]:
    """Puts back afterwards what code may set for all that comes: gradients, default dtype, autocast, determinism.

    The default device is not among them: see `fxprune.torch_private.function_modes_kept`.
    """
    before = [get() for get, _ in _SETTINGS]
    try:
        yield
    finally:
        for (get, put), value in zip(_SETTINGS, before, strict=True):
            if get() != value:
                put(value)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Plain modes and the lock, around what runs a model; afterwards every setting is as it was.

    Random states and what `settings_kept` names; attention takes no fast path meanwhile, which
    would be one operator without parts. Serves as a decorator too.
    """
    with alone(), plain_modes(), random_state_kept(), settings_kept():
        torch.backends.mha.set_fastpath_enabled(False)
        yield
