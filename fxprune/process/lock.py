"""The one lock of this process.

Hooks on every module, filters of warnings, the global random generators and the patches of torch.export are the
process's, not a thread's: work that sets any of them takes this lock, so that it is done one at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Holds the lock; a thread that has it may take it again."""
    with _lock:
        yield


def _renew() -> None:
    # A forked process has one thread; another one may have held the lock at that moment.
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)
