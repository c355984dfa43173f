"""A run that was stopped goes on to the same bytes; a good file is never replaced by half a one."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fxprune as fp
from fxprune.errors import LoadError, OptionError
from fxprune.shards import pieces, write
from fxprune.shards.checkpoint import JOURNAL
from fxprune.testing.checkpoints import SHARDS, Checkpoint

Own = Callable[..., Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def wanted(case: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run leaves that nothing stops."""
    folder = tmp_path_factory.mktemp("wanted") / "new"
    fp.apply_to_shards(case.inner, case.source, folder)
    return contents(folder)


def fail_at(
    monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException
) -> Callable[..., Any]:
    """The tensor of this number is not read to its end."""
    real, calls = pieces.bytes_of, iter(range(1000))

    def bytes_of(*args: Any) -> Any:
        for block in real(*args):
            if next(calls) == count:
                raise error
            yield block

    monkeypatch.setattr(write, "bytes_of", bytes_of)
    return real


@pytest.mark.parametrize("count", [0, 5, 14, 25])
def test_a_run_goes_on_where_it_was_stopped(
    case: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: dict[str, bytes],
    count: int,
) -> None:
    target = tmp_path / "new"
    with monkeypatch.context() as patch:
        fail_at(patch, count, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            fp.apply_to_shards(case.inner, case.source, target)
    finished = [n for n in SHARDS if (target / n).exists()]
    assert len(finished) == {0: 0, 5: 0, 14: 1, 25: 2}[count]
    if not finished:
        assert not target.exists()
    else:
        assert {n: (target / n).read_bytes() for n in finished} == {n: wanted[n] for n in finished}
        assert {p.name for p in target.iterdir()} == {*finished, JOURNAL}
    times = {n: (target / n).stat().st_mtime_ns for n in finished}
    result = fp.apply_to_shards(case.inner, case.source, target)
    assert list(result.resumed) == finished
    assert times == {n: (target / n).stat().st_mtime_ns for n in finished}
    assert contents(target) == wanted


def test_a_finished_run_only_looks(case: Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "new"
    fp.apply_to_shards(case.inner, case.source, target)
    times = {p.name: p.stat().st_mtime_ns for p in target.glob("*.safetensors")}
    assert fp.apply_to_shards(case.inner, case.source, target).resumed == SHARDS
    assert times == {p.name: p.stat().st_mtime_ns for p in target.glob("*.safetensors")}


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone"])
def test_a_damaged_shard_is_written_again(
    case: Checkpoint, tmp_path: Path, wanted: dict[str, bytes], damage: str
) -> None:
    target = tmp_path / "new"
    fp.apply_to_shards(case.inner, case.source, target)
    path, data = target / SHARDS[1], wanted[SHARDS[1]]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "flipped" else data[:-1])
    result = fp.apply_to_shards(case.inner, case.source, target)
    assert result.resumed == (SHARDS[0], SHARDS[2])
    assert contents(target) == wanted


def test_a_shard_that_changes_before_the_end_is_seen(
    case: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new"
    real = write._check_source

    def spoil(checkpoint: Any) -> None:
        real(checkpoint)
        data = (target / SHARDS[0]).read_bytes()
        (target / SHARDS[0]).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    monkeypatch.setattr(write, "_check_source", spoil)
    with pytest.raises(LoadError, match="not as it was written"):
        fp.apply_to_shards(case.inner, case.source, target)
    assert not json.loads((target / JOURNAL).read_text())["complete"]
    assert not (target / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("other", ["plan", "source"])
def test_other_work_is_refused_unless_forced(
    case: Checkpoint, own: Own, tmp_path: Path, other: str
) -> None:
    target = tmp_path / "new"
    fp.apply_to_shards(case.inner, case.source, target)
    (target / "notes.txt").write_text("mine")
    before = contents(target)
    smaller = fp.plan(case.program, {"model.blocks.0.up.weight": (0, [4])})
    plan, source = (smaller, case.source) if other == "plan" else (case.inner, own())
    with pytest.raises(OptionError, match=rf"other work\n.*\n.*another {other}|other files"):
        fp.apply_to_shards(plan, source, target)
    assert contents(target) == before
    fp.apply_to_shards(plan, source, target, force=True)
    fp.apply_to_shards(plan, source, tmp_path / "fresh")
    assert contents(target) == {**contents(tmp_path / "fresh"), "notes.txt": b"mine"}


def test_force_removes_what_only_the_other_run_had(
    case: Checkpoint, own: Own, tmp_path: Path
) -> None:
    target = tmp_path / "new"
    fp.apply_to_shards(case.inner, case.source, target)
    source = own(names=["model.safetensors"])
    fp.apply_to_shards(case.inner, source, target, force=True)
    assert sorted(contents(target)) == [JOURNAL, "model.safetensors"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_others_is_refused(case: Checkpoint, tmp_path: Path, force: bool) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / SHARDS[0]).write_text("mine")
    with pytest.raises(OptionError, match="has files already"):
        fp.apply_to_shards(case.inner, case.source, tmp_path / "new", force=force)
    assert contents(tmp_path / "new") == {SHARDS[0]: b"mine"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("count", [0, 14])
def test_a_disk_that_fails_leaves_whole_files_or_nothing(
    case: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: dict[str, bytes],
    count: int,
    code: int,
) -> None:
    target = tmp_path / "deep" / "new"
    with monkeypatch.context() as patch:
        fail_at(patch, count, OSError(code, "the disk fails"))
        with pytest.raises(LoadError, match=r"cannot write to .*\n.*\n.*the disk fails"):
            fp.apply_to_shards(case.inner, case.source, target)
    if not count:
        assert not (tmp_path / "deep").exists()
    else:
        assert sorted(contents(target)) == [JOURNAL, SHARDS[0]]
    fp.apply_to_shards(case.inner, case.source, target)
    assert contents(target) == wanted


def test_a_full_disk_is_seen_before_anything_is_written(
    case: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(LoadError, match=r"not enough room.*\n.*\n.*10,000 are free"):
        fp.apply_to_shards(case.inner, case.source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_source_that_changes_meanwhile_is_refused(
    case: Checkpoint, own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = own()
    real = write.write_shard

    def touch(*args: Any) -> str:
        (source / SHARDS[0]).touch()
        return real(*args)

    monkeypatch.setattr(write, "write_shard", touch)
    with pytest.raises(LoadError, match="changed while it was read"):
        fp.apply_to_shards(case.inner, source, tmp_path / "new")


def test_a_file_that_becomes_shorter_is_an_error(
    case: Checkpoint, own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = own()
    real = write.write_shard

    def cut(*args: Any) -> str:
        path = source / SHARDS[0]
        path.write_bytes(path.read_bytes()[:-100])
        return real(*args)

    monkeypatch.setattr(write, "write_shard", cut)
    with pytest.raises(LoadError, match="become shorter"):
        fp.apply_to_shards(case.inner, source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_source_that_cannot_be_read_is_named(
    case: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            raise OSError(errno.EIO, "the disk fails")

    real = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", **k: (
            Broken(path) if k == {"buffering": 0} else real(path, mode, **k)
        ),
    )
    with pytest.raises(LoadError, match=rf"cannot read .*{SHARDS[0]}\n.*\n.*the disk fails"):
        fp.apply_to_shards(case.inner, case.source, tmp_path / "new")
    assert not (tmp_path / "new").exists()
