"""A saved directory is the old one or the new one, whatever happens; what is not fxprune's stays."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import LoadError
from fxprune.files.staging import PREFIX, staged
from fxprune.graph.program import Program
from fxprune.io.directory import MANIFEST, PROGRAM, written


@pytest.fixture(scope="module")
def old() -> Program:
    return fp.capture(nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(2, 4))


@pytest.fixture(scope="module")
def new() -> Program:
    return fp.capture(nn.Linear(4, 5).eval(), torch.randn(2, 4))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_files_of_others_stay(old: Program, new: Program, tmp_path: Path) -> None:
    target = tmp_path / "net"
    fp.save(old, target)
    own = names(target)
    (target / "training.pt").write_text("mine")
    (target / "sub").mkdir()
    (target / "sub" / "notes.txt").write_text("mine")
    fp.save(new, target)
    assert fp.load(target).name == "Linear"
    assert names(target) == sorted([*own, "sub", "training.pt"])
    assert (target / "sub" / "notes.txt").read_text() == "mine"


def test_a_file_of_a_name_of_fxprunes_that_it_did_not_write_stays(
    old: Program, tmp_path: Path
) -> None:
    fp.save(old, tmp_path / "net")
    (tmp_path / "net" / "plan.json").write_text("mine")
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)).eval()
    outcome = fp.prune(model, torch.randn(2, 4), keep=0.5)
    with pytest.raises(LoadError, match=r"will not overwrite plan\.json"):
        fp.save(outcome, tmp_path / "net")
    assert (tmp_path / "net" / "plan.json").read_text() == "mine"
    assert fp.load(tmp_path / "net").name == "Sequential"


def test_files_of_a_save_before_go(old: Program, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)).eval()
    fp.save(fp.prune(model, torch.randn(2, 4), keep=0.5), tmp_path / "net")
    assert "plan.json" in names(tmp_path / "net")
    fp.save(old, tmp_path / "net")
    assert "plan.json" not in names(tmp_path / "net")


def test_a_link_to_a_directory_is_followed_and_one_to_nothing_refused(
    old: Program, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "nothing").symlink_to("nowhere")
    fp.save(old, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert fp.load(tmp_path / "there").name == "Sequential"
    with pytest.raises(LoadError, match="nothing"):
        fp.save(old, tmp_path / "nothing")


KILLED = """
import os, signal, sys
import torch, fxprune as fp
from torch import nn
program = fp.capture(nn.Linear(4, 5).eval(), torch.randn(2, 4))
left = int(sys.argv[2])
def watch(event, args):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree") or (
        event == "open" and str(args[0]).startswith(os.path.dirname(sys.argv[1])) and args[2] & os.O_WRONLY
    ):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
fp.save(program, sys.argv[1])
"""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, from Python 3.12 on
def test_a_save_killed_at_any_moment_leaves_the_old_or_the_new(
    old: Program, new: Program, tmp_path: Path
) -> None:
    found = set[str]()
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    for step in range(100):
        target = tmp_path / str(step) / "net"
        fp.save(old, target)
        (target / "notes.txt").write_text("mine")
        done = forked(script, target, step)
        found.add(fp.load(target).name)
        fp.save(old, target)  # finishes and tidies
        assert fp.load(target).name == "Sequential"
        assert not [n for n in names(target) if n.startswith(".")]
        assert names(target.parent) == ["net"]
        assert (target / "notes.txt").read_text() == "mine"
        if done == 0:
            break
    assert done == 0
    assert step > 8
    assert found == {"Sequential", "Linear"}


def forked(script: Path, *words: object) -> int:
    """The exit status of a script in a process that has imported everything already."""
    pid = os.fork()
    if pid == 0:
        sys.argv = [str(script), *map(str, words)]
        try:
            exec(compile(script.read_text(), script, "exec"), {"__name__": "__main__"})
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_save_killed_before_there_was_any_leaves_nothing(old: Program, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    for step in (2, 4, 6):
        assert forked(script, tmp_path / "net", step) == -signal.SIGKILL
        assert not (tmp_path / "net").exists()
        assert [n for n in names(tmp_path) if n.startswith(PREFIX)]
    fp.save(old, tmp_path / "other")
    assert names(tmp_path) == ["killed.py", "other"]


def test_the_folder_of_a_living_save_stays(old: Program, tmp_path: Path) -> None:
    with staged(tmp_path) as folder:
        fp.save(old, tmp_path / "net")
        assert folder.is_dir()
    assert names(tmp_path) == ["net"]


def test_a_link_that_looks_like_a_leftover_is_not_followed(old: Program, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "saves").mkdir()
    (tmp_path / "saves" / f"{PREFIX}x").symlink_to(tmp_path / "precious")
    fp.save(old, tmp_path / "saves" / "net")
    assert (tmp_path / "precious").is_dir()


BAD: dict[str, Callable[[Path], Path]] = {
    "below a file": lambda d: d / "file" / "net",
    "far below a file": lambda d: d / "file" / "a" / "b" / "net",
    "a file": lambda d: d / "file",
    "a name that is too long": lambda d: d / ("a" * 300),
    "a name that is no text": lambda d: d / "\udcff",
    "a name with an end in it": lambda d: d / "a\0b",
    "a loop of links": lambda d: d / "loop" / "net",
}


@pytest.mark.parametrize("case", BAD)
def test_a_path_that_cannot_be_is_an_error_of_fxprunes(
    old: Program, tmp_path: Path, case: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    for act in (lambda p: fp.save(old, p), fp.load):
        with pytest.raises(LoadError):
            act(BAD[case](tmp_path))
    assert names(tmp_path) == ["file", "loop"]


def test_a_full_disk_leaves_no_folder(
    old: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fxprune.io.program.save_weights", full)
    with pytest.raises(LoadError, match="No space left"):
        fp.save(old, tmp_path / "a" / "b" / "net")
    assert names(tmp_path) == []


def test_a_save_that_another_overtakes_replaces_it(
    old: Program, new: Program, tmp_path: Path
) -> None:
    fp.save(new, tmp_path / "new")
    with written(tmp_path / "net", PROGRAM) as folder:
        fp.save(old, tmp_path / "net")
        for path in (tmp_path / "new").iterdir():
            if path.name != MANIFEST:
                shutil.copy(path, folder)
    assert fp.load(tmp_path / "net").name == "Linear"
    assert names(tmp_path) == ["net", "new"]


def test_two_processes_save_to_one_name(tmp_path: Path) -> None:
    code = f"""
import torch, fxprune as fp
from torch import nn
program = fp.capture(nn.Linear(4, 5).eval(), torch.randn(2, 4))
for _ in range(8):
    fp.save(program, {str(tmp_path / "net")!r})
"""
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert fp.load(tmp_path / "net").name == "Linear"
    assert names(tmp_path) == ["net"]
