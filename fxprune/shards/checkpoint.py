"""The files of a checkpoint: shards with or without an index, and what lies beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune.errors import LoadError, some
from fxprune.files.document import Document
from fxprune.io.directory import told
from fxprune.shards.shard import Shard, read_shard

ENDING, INDEX_ENDING = ".safetensors", ".safetensors.index.json"
SINGLE = "model.safetensors"
JOURNAL = "fxprune-shards.json"
CONFIG = "config.json"
# Weights in other formats, or of other files than the index names: as they are, they would not fit any more.
_WEIGHTS = {
    *(ENDING, ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".npz"),
    *(".bin.index.json", INDEX_ENDING),
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder of safetensors files.

    Attributes:
        folder: where it is.
        shards: its files, by their names in order.
        index: the name of the index; "" where there is none.
        facts: what the index says beside the places of the tensors.
        others: names of files that are copied.
        left: names of files and folders that are not copied.
    """

    folder: Path
    shards: tuple[Shard, ...]
    index: str
    facts: Mapping[str, Any]
    others: tuple[str, ...]
    left: tuple[str, ...]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Finds the files of a checkpoint and reads their headers.

    Args:
        folder: with an index `*.safetensors.index.json` and its shards, a `model.safetensors`, or other
            `*.safetensors` files.

    Raises:
        LoadError: there are none, there are several indexes, a file is damaged, or index and files disagree.
    """
    with told(folder, "read"):
        if not folder.is_dir():
            raise LoadError(f"there is no folder {folder.name}", where=str(folder))
        found = {p.name: p for p in sorted(folder.iterdir())}
    names = [n for n, p in found.items() if n.endswith(ENDING) and not p.is_dir()]
    index = _index_of(folder, found)
    facts, places = _read_index(folder / index) if index else ({}, {})
    if index:
        names = sorted(set(places.values()))
    elif SINGLE in names:
        names = [SINGLE]
    if not names:
        raise LoadError(
            f"{folder.name} holds no safetensors files",
            where=str(folder),
            do="give the folder of a checkpoint; weights in another format have to be converted first",
        )
    shards = tuple(read_shard(folder / name) for name in names)
    _check_once(folder, shards)
    if index:
        _check_index(folder / index, places, shards)
    rest = [n for n in found if n not in names and n not in (index, JOURNAL)]
    others = [n for n in rest if found[n].is_file() and not _is_weights(n)]
    left = [n for n in rest if n not in others]
    return Checkpoint(folder, shards, index, facts, tuple(others), tuple(left))


def _is_weights(name: str) -> bool:
    return any(name.endswith(ending) for ending in _WEIGHTS)


def _index_of(folder: Path, found: Mapping[str, Path]) -> str:
    indexes = [n for n in found if n.endswith(INDEX_ENDING)]
    several = [*indexes, SINGLE] if indexes and SINGLE in found else indexes
    if len(several) > 1:
        raise LoadError(
            f"{folder.name} holds more than one checkpoint",
            where=str(folder),
            why=some(several),
            do="move all but one of them to folders of their own",
        )
    return indexes[0] if indexes else ""


def _read_index(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What an index says beside its map, and tensor -> file."""
    top = Document(str(path), LoadError).read(path).mapping()
    if "weight_map" not in top:
        raise LoadError(f"{path.name} has no weight_map", where=str(path), do="copy it again")
    places = {}
    for name, entry in top.pop("weight_map").mapping().items():
        places[name] = file = entry.text()
        if not is_plain(file) or not file.endswith(ENDING):
            entry.fail(f"{file[:80]!r} is no name of a file beside the index", "copy it again")
    return {key: entry.value for key, entry in top.items()}, places


def is_plain(name: str) -> bool:
    """Whether a text names a file in a folder, and leads nowhere else."""
    return bool(name) and name not in (".", "..") and not any(c in name for c in "/\\:\0")


def _check_once(folder: Path, shards: Sequence[Shard]) -> None:
    times = Counter(t.name for shard in shards for t in shard.tensors)
    if twice := [name for name, n in times.items() if n > 1]:
        raise LoadError(
            "tensors are in more than one file",
            where=str(folder),
            why=some(twice),
            do="give a folder that holds one checkpoint",
        )


def _check_index(path: Path, places: Mapping[str, str], shards: Sequence[Shard]) -> None:
    there = {t.name: shard.name for shard in shards for t in shard.tensors}
    for what, names in (
        ("the index names tensors that its files lack", places.keys() - there.keys()),
        ("files hold tensors that the index does not name", there.keys() - places.keys()),
        (
            "tensors are in other files than the index says",
            {n for n in places.keys() & there.keys() if places[n] != there[n]},
        ),
    ):
        if names:
            raise LoadError(
                what, where=str(path), why=some(sorted(names)), do="copy the checkpoint again"
            )
