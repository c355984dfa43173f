"""Directories that are complete or absent: written elsewhere, then moved into place, and checked when read."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fxprune import __version__
from fxprune.errors import LoadError

PROGRAM, PARTS = "fxprune-program", "fxprune-parts"
VERSIONS = {PROGRAM: 3, PARTS: 1}
MANIFEST = "manifest.json"
_INSTEAD = {
    PROGRAM: "read it with fp.load",
    PARTS: "capture the model in parts and load into it: fp.capture_partial(model, args).load(directory)",
}
_KEYS = ("bytes", "sha256")


@contextmanager
def written(target: Path, kind: str) -> Iterator[Path]:
    """Provides an empty directory to fill; it replaces `target` when the block ends without an error.

    Args:
        target: absent, empty, or an older directory that fxprune wrote, which is replaced.
        kind: PROGRAM or PARTS.

    Raises:
        LoadError: fxprune did not write `target`; it is left unchanged.
    """
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield aside
        _write_manifest(aside, kind)
        aside.chmod(0o755)
        _move(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_replaceable(target: Path) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        known = json.loads((target / MANIFEST).read_text(encoding="utf-8"))["format"] in VERSIONS
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise LoadError(
            f"will not overwrite {target}",
            where=str(target),
            why="it exists, and fxprune did not write it",
            do="choose another directory, or remove this one",
        )


def _move(aside: Path, target: Path) -> None:
    """Renames `aside` to `target`; the old directory is deleted only once the new one is in place."""
    if not target.exists():
        aside.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(old / "was")
    try:
        aside.rename(target)
    except OSError:
        (old / "was").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write_manifest(folder: Path, kind: str) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.iterdir())
    }
    about = {"format": kind, "version": VERSIONS[kind], "fxprune": __version__}
    write_json(folder / MANIFEST, {**about, "files": files})
    for name in files:  # safetensors lets nobody else read
        (folder / name).chmod((folder / MANIFEST).stat().st_mode)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Writes plain data as indented JSON."""
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def check_directory(folder: Path, kind: str) -> None:
    """Checks that a saved directory is of a kind, PROGRAM or PARTS, and is unchanged since it was written.

    Raises:
        LoadError: a file is missing, truncated or altered; the message names it.
    """
    manifest = _read_manifest(folder, kind)
    for name, wanted in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise _damaged(path, "is missing", "the manifest of the directory lists it")
        size = path.stat().st_size
        if size != wanted["bytes"]:
            raise _damaged(
                path,
                "is truncated or altered",
                f"it has {size:,} bytes instead of {wanted['bytes']:,}",
            )
        if _digest(path) != wanted["sha256"]:
            raise _damaged(path, "was altered", "its SHA-256 differs from the one in the manifest")


def _read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise LoadError(
            f"{folder} does not contain a saved program",
            where=str(path),
            why="this file does not exist",
            do="give a directory that fp.save or `fxprune prune --out` wrote",
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"], manifest["version"]
        manifest["files"] = {n: {k: f[k] for k in _KEYS} for n, f in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(
            path, "is truncated or altered", f"{type(error).__name__}: {error}"
        ) from error
    _check_format(path, kind, found, manifest.get("fxprune"))
    return dict(manifest)


def _check_format(path: Path, kind: str, found: tuple[Any, Any], wrote: Any) -> None:
    if found == (kind, VERSIONS[kind]):
        return
    if found[0] in VERSIONS and found[0] != kind:
        parts = found[0] == PARTS
        raise LoadError(
            f"{path.parent} contains "
            + ("a model pruned in parts" if parts else "a whole program"),
            where=str(path),
            why="there is no graph of the whole model" if parts else "",
            do=_INSTEAD[found[0]],
        )
    raise LoadError(
        f"format {found[0]} {found[1]} is not known",
        where=str(path),
        why=f"this version of fxprune reads {kind} {VERSIONS[kind]}; fxprune {wrote} wrote the file",
        do="load it with the version of fxprune that wrote it",
    )


def _damaged(path: Path, what: str, why: str) -> LoadError:
    return LoadError(
        f"{path.name} {what}", where=str(path), why=why, do="save or copy the directory again"
    )
