"""What a save fills before anybody sees it; what a killed one left goes with the next save.

A living save holds a lock on its folder, which the system lets go with the process, however that ends.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Windows has no such locks: there leftovers stay.
fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None

PREFIX = ".fxprune-"
_ATTEMPTS = 8


@contextmanager
def staged(parent: Path) -> Iterator[Path]:
    """An empty folder in `parent`; gone when the block ends, where it was not moved.

    Raises:
        OSError: it cannot be made.
    """
    remove_leftovers(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # not there any more where all went well
        if lock is not None:
            os.close(lock)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is complete, or else what it was; what is no ordinary file, such as a pipe, is written to.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(os.path.realpath(path))  # not the link, but what it leads to
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with staged(path.parent) as folder:
        aside = folder / "file"
        aside.write_bytes(data)
        if path.exists():
            shutil.copymode(path, aside)
        aside.replace(path)


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    for _ in range(_ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        if fcntl is None:
            return folder, None
        if (lock := _lock(folder)) is not None:
            return folder, lock
    raise OSError(f"other saves remove the folders of this one in {parent}")


def remove_leftovers(parent: Path) -> None:
    """Removes the folders of saves that run no more."""
    for folder in parent.glob(f"{PREFIX}*") if fcntl is not None else ():
        if folder.is_symlink() or not folder.is_dir():
            continue
        if (lock := _lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)  # another save may be at it too
            os.close(lock)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other save is in such a block of the same folder."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock(folder: Path) -> int | None:
    """A lock on a folder; None where a living save has it, or it is gone."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    if not folder.is_dir():
        os.close(handle)
        return None
    return handle


@contextmanager
def parents_of(target: Path) -> Iterator[None]:
    """The folders around `target`; those that had to be made are gone after an error."""
    missing = [p for p in target.parents if not p.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # somebody else put something there
                path.rmdir()
        raise


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
