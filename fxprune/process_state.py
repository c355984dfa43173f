"""The modes of torch in this process and thread, as our code and as the user's model need them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from fxprune.torch_private import autocast_devices, default_device_modes

_CPU = torch.device("cpu")
_local = threading.local()
_lock = threading.RLock()


def _renew_lock() -> None:
    """A forked process has one thread, and no lock that another one held."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)
