"""A file that is written is the old one or the new one, whatever happens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxprune.files.staging import write_whole


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")], ids=repr)
def test_a_file_is_as_before_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:1])
        raise error

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(type(error)):
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_link_and_the_mode_of_a_file_stay(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("old")
    (tmp_path / "sub" / "a").chmod(0o600)
    (tmp_path / "link").symlink_to("sub/a")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "sub" / "a").read_text() == "new"
    assert (tmp_path / "sub" / "a").stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", b"new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
