"""Pauses Python's cyclic garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Pauses the cyclic garbage collector around work that creates many long-lived objects.

    Such objects trigger collections that scan the whole process, torch's modules included, and find
    nothing: up to a third of the time of a capture. Reference counting still frees other objects
    meanwhile. Can be used as a context manager or as a decorator.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
