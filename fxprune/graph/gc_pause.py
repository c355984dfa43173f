"""Work without the collector of cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Leaves the collector of cycles out, around work that makes many objects that stay.

    They make it look through the whole process, torch's modules included, for garbage that is not there:
    up to a third of a capture. Reference counts free the rest meanwhile. Serves as a decorator too.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
