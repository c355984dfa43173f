"""Writes the smaller checkpoint: every file appears whole, what is finished is kept, and read again."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from fxprune.errors import LoadError
from fxprune.files.staging import digest_of, staged, write_whole
from fxprune.shards.changes import Change, Changes
from fxprune.shards.checkpoint import Checkpoint
from fxprune.shards.journal import Journal
from fxprune.shards.pieces import bytes_of
from fxprune.shards.shard import Shard, header_of, read_shard


def write_all(
    checkpoint: Checkpoint,
    changes: Changes,
    texts: Mapping[str, str],
    target: Path,
    journal: Journal,
) -> None:
    """Writes all files of the smaller checkpoint that are not finished, and reads them again.

    Args:
        checkpoint: that is read.
        changes: what becomes of its tensors.
        texts: files that are written anew, by name; the index last, by which others find the shards.
        target: the folder.
        journal: of the folder; it says what is finished, and is written after each shard.

    Raises:
        LoadError: there is no room, a file cannot be read or written, or is not as it was written.
    """
    missing = [s for s in checkpoint.shards if s.name in changes.keys() - journal.shards.keys()]
    _check_room(target, [c for s in missing for c in changes[s.name]])
    journal.write(target)
    for shard in missing:
        journal.shards[shard.name] = write_shard(shard, changes[shard.name], target)
        journal.write(target)
    _check_source(checkpoint)
    for shard in missing:
        _check_written(target / shard.name, changes[shard.name], journal.shards[shard.name])
    for name in checkpoint.others:
        if name not in texts:
            _copy(checkpoint.folder / name, target / name)
    for name, text in texts.items():
        write_whole(target / name, text.encode("utf-8"))
    journal.complete = True
    journal.write(target)


def _check_room(target: Path, changes: Sequence[Change]) -> None:
    needed, free = sum(c.after.nbytes for c in changes), shutil.disk_usage(target).free
    if needed > free:
        raise LoadError(
            "there is not enough room for the smaller checkpoint",
            where=str(target),
            why=f"{needed:,} bytes are to be written, and {free:,} are free",
            do="make room, or give a folder on another disk; what is finished is kept",
        )


def write_shard(shard: Shard, changes: Sequence[Change], target: Path) -> str:
    """Writes the smaller file of a shard; it appears in the folder when it is whole.

    Args:
        shard: that is read.
        changes: what becomes of its tensors.
        target: the folder.

    Returns:
        the SHA-256 of what was written.
    """
    state = hashlib.sha256()
    with staged(target) as folder:
        aside = folder / shard.name
        with aside.open("wb") as out, shard.path.open("rb", buffering=0) as stream:
            head = header_of([c.after for c in changes], shard.metadata)
            out.write(head)
            state.update(head)
            for change in changes:
                for block in bytes_of(change, stream, str(shard.path)):
                    out.write(block)
                    state.update(block)
        _check_shapes(aside, changes)
        aside.replace(target / shard.name)
    return state.hexdigest()


def _check_source(checkpoint: Checkpoint) -> None:
    """Refuses a result that was read from files that changed meanwhile."""
    for shard in checkpoint.shards:
        now = shard.path.stat()
        if (now.st_size, now.st_mtime_ns) != (shard.nbytes, shard.modified):
            raise LoadError(
                f"{shard.name} has changed while it was read",
                where=str(shard.path),
                do="run it again when nothing writes to the checkpoint, with force=True or --force",
            )


def _check_written(path: Path, changes: Sequence[Change], digest: str) -> None:
    """Reads a finished shard again."""
    _check_shapes(path, changes)
    if digest_of(path) != digest:
        raise LoadError(
            f"{path.name} is not as it was written",
            where=str(path),
            why="its SHA-256 is another",
            do="check the disk, and run it again: this shard is then written anew",
        )


def _check_shapes(path: Path, changes: Sequence[Change]) -> None:
    found = [(t.name, t.dtype, t.shape) for t in read_shard(path).tensors]
    wanted = [(c.after.name, c.after.dtype, c.after.shape) for c in changes]
    if sorted(found) != sorted(wanted):
        raise LoadError(f"{path.name} has other tensors than were written", where=str(path))


def _copy(source: Path, target: Path) -> None:
    with staged(target.parent) as folder:
        shutil.copyfile(source, folder / target.name)
        (folder / target.name).replace(target)
