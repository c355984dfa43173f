"""What has been done in a target folder: enough to go on after a kill, and to see whether files are as written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fxprune import __version__
from fxprune.errors import LoadError
from fxprune.files.document import Document, Entry
from fxprune.shards.checkpoint import JOURNAL, Checkpoint, is_plain

FORMAT, VERSION = "fxprune-shards", 1


@dataclass
class Journal:
    """The journal of a folder.

    Attributes:
        task: a hash of all that is done: of the plan, and of the factors that tensors take.
        fingerprint: of the plan.
        source: by shard, what it was read from: size, time and SHA-256 of the header.
        files: names of all other files that are written.
        shards: by shard that is finished, its SHA-256.
        complete: whether all is done.
    """

    task: str
    fingerprint: str
    source: Mapping[str, Mapping[str, Any]]
    files: tuple[str, ...]
    shards: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def same_work(self, other: Journal) -> str:
        """Why the work is not that of another journal; "" where it is."""
        if self.task != other.task:
            return "it was begun with another plan, or another model"
        if self.source != other.source:
            return "it was begun with other files, or they have changed since"
        return ""

    def write(self, folder: Path) -> None:
        """Writes the journal; the file is the old one or the new one.

        Raises:
            LoadError: it cannot be written.
        """
        head = {"format": FORMAT, "version": VERSION, "fxprune": __version__}
        body = asdict(self) | {"shards": dict(sorted(self.shards.items()))}
        text = json.dumps({**head, **body}, indent=1) + "\n"
        Document(str(folder / JOURNAL), LoadError).write(folder / JOURNAL, text)


def source_of(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """What tells the files of a checkpoint from others, without reading all of them."""
    return {
        s.name: {"bytes": s.nbytes, "modified": s.modified, "header": s.header}
        for s in checkpoint.shards
    }


def read_journal(folder: Path) -> Journal | None:
    """The journal of a folder; None where there is none.

    Raises:
        LoadError: it was altered.
    """
    path = folder / JOURNAL
    if not path.is_file():
        return None
    top = (
        Document(str(path), LoadError)
        .read(path)
        .record(
            *("format", "version", "fxprune", "task", "fingerprint"),
            *("source", "files", "shards", "complete"),
        )
    )
    top["format"].text([FORMAT])
    top["version"].integer(VERSION, VERSION)
    return Journal(
        top["task"].text(),
        top["fingerprint"].text(),
        {_name(name, e): _facts(e) for name, e in top["source"].mapping().items()},
        tuple(_name(e.text(), e) for e in top["files"].items()),
        {_name(name, e): e.text() for name, e in top["shards"].mapping().items()},
        top["complete"].flag(),
    )


def _facts(entry: Entry) -> dict[str, Any]:
    facts = entry.record("bytes", "modified", "header")
    return {
        "bytes": facts["bytes"].integer(0),
        "modified": facts["modified"].integer(),
        "header": facts["header"].text(),
    }


def _name(name: str, entry: Entry) -> str:
    if not is_plain(name):
        entry.fail(f"{name[:80]!r} is no name of a file in the folder", "remove the folder")
    return name
