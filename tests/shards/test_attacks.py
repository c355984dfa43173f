"""Files that anybody may have written end in an error that names them, and nothing is written."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import fxprune as fp
from fxprune.errors import FxpruneError, LoadError, OptionError
from fxprune.shards.checkpoint import JOURNAL
from fxprune.testing.checkpoints import SHARDS, Checkpoint

Own = Callable[..., Path]
INDEX = "model.safetensors.index.json"


def file_of(header: object, data: bytes = b"1234") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(**facts: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **facts}}


ENTRY = json.dumps(one()["a"]).encode()
FILES = {
    "empty": b"",
    "a length alone": struct.pack("<Q", 8),
    "a huge length": struct.pack("<Q", 1 << 63) + b"{}",
    "a length beyond the file": struct.pack("<Q", 1000) + b"{}",
    "no JSON": file_of(b"{"),
    "deep JSON": file_of(b'{"a":' + b"[" * 5000),
    "no text": file_of(b'{"\xff": 1}'),
    "an offset beyond the file": file_of(one(data_offsets=[4, 8])),
    "an end before the beginning": file_of(one(data_offsets=[4, 0])),
    "a negative offset": file_of(one(data_offsets=[-4, 0])),
    "a gap": file_of(one(), b"12345678"),
    "too few bytes": file_of(one(), b"123"),
    "overlapping tensors": file_of({**one(), "b": one()["a"]}),
    "a size that overflows": file_of(one(shape=[1 << 62, 1 << 62])),
    "a negative size": file_of(one(shape=[-1])),
    "another number of bytes": file_of(one(shape=[2])),
    "an unknown type": file_of(one(dtype="F99")),
    "an unknown key": file_of(one(more=1)),
    "a name twice": file_of(b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}"),
    "metadata that are no texts": file_of({"__metadata__": {"a": 1}, **one()}),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(case: Checkpoint, own: Own, tmp_path: Path, name: str) -> None:
    source = own()
    (source / SHARDS[1]).write_bytes(FILES[name])
    with pytest.raises(LoadError) as stopped:
        fp.apply_to_shards(case.inner, source, tmp_path / "new")
    assert SHARDS[1] in str(stopped.value)
    assert not (tmp_path / "new").exists()


def places(source: Path) -> dict[str, str]:
    return dict(json.loads((source / INDEX).read_text())["weight_map"])


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "a\0.safetensors",
             "C:\\x.safetensors", "config.json", 3, None]
)  # fmt: skip
def test_an_index_leads_nowhere_else(
    case: Checkpoint, own: Own, tmp_path: Path, file: object
) -> None:
    source = own()
    (tmp_path / "x.safetensors").write_bytes((source / SHARDS[0]).read_bytes())
    (source / INDEX).write_text(json.dumps({"weight_map": {**places(source), "a": file}}))
    with pytest.raises(LoadError, match="weight_map, a"):
        fp.apply_to_shards(case.inner, source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_indexes_that_disagree_with_their_files(case: Checkpoint, own: Own, tmp_path: Path) -> None:
    source = own()
    right = places(source)
    first, *rest = right
    for wrong, message in (
        ({**right, "more": SHARDS[0]}, "its files lack"),
        ({k: right[k] for k in rest}, "the index does not name"),
        ({**right, first: SHARDS[1]}, "in other files than the index says"),
        ({**right, "more": "gone.safetensors"}, r"there is no file gone\.safetensors"),
    ):
        (source / INDEX).write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(LoadError, match=message):
            fp.apply_to_shards(case.inner, source, tmp_path / "new")
    for text in ("", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "b", "a": "b"}}'):
        (source / INDEX).write_text(text)
        with pytest.raises(LoadError):
            fp.apply_to_shards(case.inner, source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_several_checkpoints_in_one_folder(case: Checkpoint, own: Own, tmp_path: Path) -> None:
    source = own()
    (source / "model.safetensors").write_bytes((source / SHARDS[0]).read_bytes())
    with pytest.raises(LoadError, match="more than one checkpoint"):
        fp.apply_to_shards(case.inner, source, tmp_path / "new")
    (source / INDEX).unlink()
    (source / "model.safetensors").rename(source / "copy.safetensors")
    with pytest.raises(LoadError, match="in more than one file"):
        fp.apply_to_shards(case.inner, source, tmp_path / "new")


@pytest.mark.parametrize("source", ["nothing", "empty", "a file", "\udc80", "a\0b"])
def test_sources_that_are_none(case: Checkpoint, tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_text("")
    with pytest.raises(LoadError):
        fp.apply_to_shards(case.inner, tmp_path / source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("target", ["a file", "\udc80", "a\0b", "a file/new"])
def test_targets_that_are_none(case: Checkpoint, tmp_path: Path, target: str) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(FxpruneError):
        fp.apply_to_shards(case.inner, case.source, tmp_path / target)
    assert [p.name for p in tmp_path.iterdir()] == ["a file"]


@pytest.mark.parametrize(
    "change",
    [
        {"shards": {"../mine.txt": ""}},
        {"source": {"../mine.txt": {"bytes": 1, "modified": 1, "header": ""}}},
        {"files": ["../mine.txt"]},
        {"files": [3]},
        {"version": 2},
        {"format": "another"},
        {"more": 1},
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_journal_leads_nowhere_else(
    case: Checkpoint, tmp_path: Path, change: dict[str, object], force: bool
) -> None:
    target = tmp_path / "new"
    fp.apply_to_shards(case.inner, case.source, target)
    (tmp_path / "mine.txt").write_text("mine")
    (target / JOURNAL).write_text(json.dumps(json.loads((target / JOURNAL).read_text()) | change))
    before = {p.name: p.read_bytes() for p in target.iterdir()}
    with pytest.raises(OptionError, match="has files already"):
        fp.apply_to_shards(case.inner, case.source, target, force=force)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
