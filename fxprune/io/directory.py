"""A directory that is complete or not there: written aside, moved into place, checked when read.

Files of others in it stay. A directory that is written again is switched in one step: the new files lie
complete in a folder inside it, that folder gets the name which readers look for first, and then its files
take the places of the old ones. A save that is killed in between is finished by the next one; until then
readers take each new file from where it lies.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fxprune import __version__
from fxprune.errors import LoadError
from fxprune.files.document import Document, Entry, printable
from fxprune.files.staging import PREFIX, alone, digest_of, parents_of, staged

PROGRAM, PARTS, MODEL = "fxprune-program", "fxprune-parts", "fxprune-model"
VERSIONS = {PROGRAM: 4, PARTS: 2, MODEL: 2}
MANIFEST = "manifest.json"
GRAPH, FACTS, INPUTS = "graph.json", "program.json", "inputs.safetensors"
PARTS_FACTS, MODEL_FACTS, CONSTANTS = "parts.json", "model.json", "constants.safetensors"
PLAN, REPORT, WEIGHTS = "plan.json", "report.json", "weights.safetensors"
# What a directory must hold, and what it may.
_FILES = {
    PROGRAM: ({GRAPH, FACTS, INPUTS, WEIGHTS}, {PLAN, REPORT}),
    PARTS: ({PARTS_FACTS, PLAN, REPORT, WEIGHTS}, set[str]()),
    MODEL: ({MODEL_FACTS, WEIGHTS}, {PLAN, REPORT, INPUTS, CONSTANTS}),
}
_OLDER = {"program.pt2", "leaves.safetensors"}  # of version 3
_OURS = _OLDER.union(*(a | b for a, b in _FILES.values()))
_PENDING = ".fxprune.pending"
_INSTEAD = {
    PROGRAM: ("a whole program", "", "read it with fp.load"),
    PARTS: (
        "a model pruned in parts",
        "there is no graph of the whole model",
        "capture the model in parts and load into it: fp.capture_partial(model, args).load(directory)",
    ),
    MODEL: (
        "a model of its own class",
        "there is no graph: the class is built, and given the weights",
        "read it with fp.load_model; `fxprune --trust` on the command line",
    ),
}


@contextmanager
def written(target: Path, kind: str) -> Iterator[Path]:
    """An empty directory to fill; its files are those of `target` when the block ends without error.

    Args:
        target: absent, empty, or an older directory of fxprune's, whose own files are replaced.
        kind: PROGRAM, PARTS or MODEL.

    Raises:
        LoadError: `target` is something that fxprune did not write, or cannot be written; it stays as it is.
    """
    with told(target, "save to"), parents_of(target):
        _check_replaceable(target)
        there = target.is_dir()
        with staged(target if there else target.parent) as aside:
            yield aside
            _write_manifest(aside, kind)
            aside.chmod(0o755)
            if not there and _moved(aside, target):
                return
            with alone(target):
                _finish(target)
                _check_strangers(target, aside)
                aside.rename(target / _PENDING)
                _finish(target)


def _moved(aside: Path, target: Path) -> bool:
    """Gives a folder its name; not where another save was faster, which this one then replaces."""
    try:
        aside.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        _check_replaceable(target)
        return False
    return True


@contextmanager
def told(path: Path, doing: str) -> Iterator[None]:
    """Turns what the system says into an error that names the path."""
    try:
        _check_text(path)
        yield
    except (OSError, SafetensorError) as error:
        raise LoadError(
            f"cannot {doing} {printable(str(path))}",
            where=printable(str(path)),
            why=getattr(error, "strerror", None) or str(error),
            do="give another directory, or make room there",
        ) from error


def _check_text(path: Path) -> None:
    """Refuses a name that is no text: safetensors ends the process on it."""
    try:
        wrong = b"\0" in str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        wrong = True
    if wrong:
        raise OSError(errno.EINVAL, "the name is no text of UTF-8")


def _check_replaceable(target: Path) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and (not _others(target) or _listed(_manifest_path(target)) is not None):
        return
    raise LoadError(
        f"will not overwrite {target}",
        where=str(target),
        why="it exists and is not a directory that fxprune saved",
        do="give another directory, or remove this one",
    )


def _others(target: Path) -> list[str]:
    """What is in a directory, but for what killed saves left."""
    return [p.name for p in target.iterdir() if not p.name.startswith(PREFIX)]


def _listed(manifest: Path) -> set[str] | None:
    """The files that the manifest of a saved directory names; None where there is no such manifest."""
    try:
        facts = read_json(manifest).mapping()
        facts["format"].text(list(VERSIONS))
        return facts["files"].mapping().keys() & _OURS if "files" in facts else set()
    except (LoadError, KeyError):
        return None


def _check_strangers(target: Path, aside: Path) -> None:
    """Refuses to replace what fxprune did not write, though it has the name of a file of fxprune's."""
    known = {MANIFEST, *(_listed(_manifest_path(target)) or ())}
    for path in aside.iterdir():
        if path.name not in known and os.path.lexists(target / path.name):
            raise LoadError(
                f"will not overwrite {path.name}",
                where=str(target / path.name),
                why="fxprune did not write it: the directory's manifest does not name it",
                do="move it away, or give another directory",
            )


def _finish(target: Path) -> None:
    """Moves the files of a save that is complete to their places, and removes those that it replaces."""
    pending = target / _PENDING
    if _manifest_path(target).parent == pending:
        new = _listed(pending / MANIFEST) or set()
        old = _listed(target / MANIFEST) or set()
        for name in new:
            if (pending / name).is_file():
                (pending / name).replace(target / name)
        for name in old - new:
            (target / name).unlink(missing_ok=True)
        (pending / MANIFEST).replace(target / MANIFEST)
    if pending.is_dir():
        pending.rmdir()


def _write_manifest(folder: Path, kind: str) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest_of(path)}
        for path in sorted(folder.iterdir())
    }
    about = {"format": kind, "version": VERSIONS[kind], "fxprune": __version__}
    write_json(folder / MANIFEST, {**about, "files": files})
    for name in files:  # safetensors lets nobody else read
        (folder / name).chmod((folder / MANIFEST).stat().st_mode)


def write_json(path: Path, data: Any) -> None:
    """Writes plain data as JSON; half a character, as a file's name may have, becomes a question mark."""
    text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode("utf-8", "replace"))


def read_json(path: Path) -> Entry:
    """The outermost value of a file of a saved directory.

    Raises:
        LoadError: it is no JSON, or too much of it.
    """
    return Document(str(path), LoadError).read(path)


def kind_of(folder: Path) -> str:
    """What a directory was saved as, PROGRAM, PARTS or MODEL; "" where it says nothing of that."""
    try:
        return read_json(_manifest_path(folder)).mapping()["format"].text(list(VERSIONS))
    except (LoadError, KeyError, OSError):
        return ""


@contextmanager
def checked(folder: Path, kind: str) -> Iterator[Mapping[str, Path]]:
    """Where each file of a saved directory lies, of one kind, PROGRAM, PARTS or MODEL, and as it was written.

    Raises:
        LoadError: names the file that is missing, truncated or altered, or what cannot be read in the block.
    """
    with told(folder, "load"):
        manifest = _manifest_path(folder)
        yield {
            name: _checked(folder, name, e) for name, e in _read_manifest(manifest, kind).items()
        }


def _manifest_path(folder: Path) -> Path:
    """The manifest of the newest save that is complete."""
    pending = folder / _PENDING / MANIFEST
    inside = not (folder / _PENDING).is_symlink() and _is_ordinary(pending)
    return pending if inside else folder / MANIFEST


def _checked(folder: Path, name: str, wanted: Entry) -> Path:
    facts = wanted.record("bytes", "sha256")
    path = folder / name
    pending = folder / _PENDING / name
    if _manifest_path(folder).parent == pending.parent and os.path.lexists(pending):
        path = pending
    if not _is_ordinary(path):
        what = "is no file of its own" if os.path.lexists(path) else "is missing"
        raise _damaged(path, what, "the directory's manifest lists it")
    size, length = path.stat().st_size, facts["bytes"].integer(0)
    if size != length:
        raise _damaged(path, "is truncated or altered", f"{size:,} bytes, not {length:,}")
    if digest_of(path) != facts["sha256"].text():
        raise _damaged(path, "was altered", "its SHA-256 is not the one in the manifest")
    return path


def _is_ordinary(path: Path) -> bool:
    """Whether there is a file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _facts(path: Path) -> dict[str, Entry]:
    return read_json(path).record("format", "version", "fxprune", "files")


def _read_manifest(path: Path, kind: str) -> dict[str, Entry]:
    if not _is_ordinary(path):
        raise LoadError(
            f"{path.parent} does not contain a saved program",
            where=str(path),
            why="this file does not exist",
            do="give a directory that fp.save or `fxprune prune --out` wrote",
        )
    facts = _facts(path)
    found = facts["format"].text(), facts["version"].integer()
    _check_format(path, kind, found, facts["fxprune"].text())
    needed, allowed = _FILES[kind]
    return facts["files"].record(*sorted(needed), optional=sorted(allowed))


def _check_format(path: Path, kind: str, found: tuple[str, int], wrote: str) -> None:
    if found == (kind, VERSIONS[kind]):
        return
    if found[0] in VERSIONS and found[0] != kind:
        what, why, do = _INSTEAD[found[0]]
        raise LoadError(f"{path.parent} contains {what}", where=str(path), why=why, do=do)
    raise LoadError(
        f"format {found[0][:80]} {found[1]} is not known",
        where=str(path),
        why=f"this version of fxprune reads {kind} {VERSIONS[kind]}; {wrote[:40]} wrote the file",
        do="load it with the fxprune that wrote it",
    )


def _damaged(path: Path, what: str, why: str) -> LoadError:
    return LoadError(
        f"{path.name} {what}", where=str(path), why=why, do="save or copy the directory again"
    )
