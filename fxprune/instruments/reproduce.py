"""Records what is needed to repeat a failed run: a directory, and the command that replays it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from fxprune import __version__
from fxprune.errors import FxpruneError, LoadError, OptionError
from fxprune.files.document import Entry
from fxprune.files.staging import staged
from fxprune.graph.program import Program
from fxprune.io import load, save
from fxprune.io.directory import read_json, write_json
from fxprune.pipeline.context import Context
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Pass
from fxprune.pipeline.pipeline import Pipeline
from fxprune.pipeline.registry import GROUP, find_pass
from fxprune.pipeline.result import Result
from fxprune.pipeline.run import run_pipeline
from fxprune.plugins import find_named, trusting
from fxprune.verify import Verify, how_to_verify

FACTS, PROGRAM, ERROR = "reproducer.json", "program", "error.txt"
FORMAT, VERSION = "fxprune-reproducer", 1


class Reproducer(Instrument):
    """Writes a directory when a pass fails, with the program, the pipeline text, the seed and the error.

    The saved program is the one before the first pass, so that all passes decide and draw as they did. The
    directory appears complete or not at all; an older reproducer is replaced.

    Args:
        directory: where to write; absent, empty, or an older reproducer.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._start: tuple[Pipeline, Program] | None = None

    def before_run(self, pipeline: Pipeline, program: Program, ctx: Context) -> None:
        self._start = pipeline, program

    def on_failure(self, one: Pass, before: Program, error: Exception, ctx: Context) -> str:
        if self._start is None:
            return ""
        try:
            _write(self._directory, *self._start, one, error, ctx)
        except (FxpruneError, OSError) as reason:
            return f"no reproducer could be written to {self._directory}: {reason}"
        return f"to replay the failure, run: fxprune replay {shlex.quote(str(self._directory))}"


def replay(directory: str | os.PathLike[str], *, trust: bool = False) -> Result:
    """Runs the pipeline that a `Reproducer` recorded; returns the result if it no longer fails.

    Args:
        directory: what a `Reproducer` wrote.
        trust: import whatever module the directory names for its passes and functions; without, only
            installed passes and modules that were imported already are taken.

    Raises:
        PipelineError: the pipeline failed again.
        LoadError: the directory contains no reproducer, or an incomplete one.
        OptionError: a pass of the pipeline is no longer installed, or in a module that was not imported.
    """
    folder = Path(directory)
    facts = _read(folder)
    classes = {name: e.text() for name, e in facts["passes"].mapping().items()}
    disable = [e.text() for e in facts["disable"].items()]
    limit = facts["limit"]
    program = load(folder / PROGRAM)
    with trusting(trust):
        return run_pipeline(
            program,
            Pipeline.parse(facts["pipeline"].text(), lambda name: _find(name, classes)),
            verify=_verify(facts["verify"]),
            disable=disable,
            limit=None if limit.value is None else limit.integer(0),
            seed=facts["seed"].integer(),
        )


def _verify(entry: Entry) -> Verify:
    """How passes were verified; versions before 0.1 only knew whether."""
    return entry.flag() if isinstance(entry.value, bool) else how_to_verify(entry.text()) or False


def _write(
    target: Path, pipeline: Pipeline, program: Program, one: Pass, error: Exception, ctx: Context
) -> None:
    _check_replaceable(target)
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "fxprune": __version__,
        "torch": str(torch.__version__),
        "failed": str(Pipeline([one])),
        "pipeline": str(pipeline),
        "passes": _classes(pipeline),
        "seed": ctx.seed,
        "limit": ctx.limit,
        "disable": list(ctx.disable),
        "verify": ctx.verify,
    }
    text = f"{type(error).__name__}: {error}\n"
    if target.exists():  # what a person put beside stays
        (target / FACTS).unlink(missing_ok=True)
        _fill(target, program, facts, text)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with staged(target.parent) as aside:
        _fill(aside, program, facts, text)
        aside.chmod(0o755)
        aside.rename(target)


def _fill(folder: Path, program: Program, facts: dict[str, Any], text: str) -> None:
    """The file of facts last: a folder without it holds no reproducer."""
    save(program, folder / PROGRAM)
    (folder / ERROR).write_text(text, encoding="utf-8")
    write_json(folder / FACTS, facts)


def _check_replaceable(target: Path) -> None:
    if target.exists() and not (target.is_dir() and _is_ours(target)):
        raise LoadError(
            f"will not overwrite {target}",
            why="it exists and is not a reproducer",
            do="choose another directory",
        )


def _is_ours(target: Path) -> bool:
    if not any(target.iterdir()):
        return True
    try:
        return bool(read_json(target / FACTS).mapping()["format"].value == FORMAT)
    except (LoadError, KeyError):
        return False


def _classes(pipeline: Pipeline) -> dict[str, str]:
    """Returns the location of each pass's class, so that passes without an entry point are found too."""
    return {p.name: f"{type(p).__module__}:{type(p).__qualname__}" for p in pipeline.passes()}


def _find(name: str, classes: Mapping[str, str]) -> type[Pass]:
    """An installed pass, or else the class that the file names, where its module may be looked into."""
    named = classes.get(name, "")
    if any(e.value == named for e in entry_points(group=GROUP, name=name)) or not named:
        return find_pass(name)
    try:
        found = find_named(named)
    except OptionError:
        if entry_points(group=GROUP, name=name):
            return find_pass(name)
        raise
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise OptionError(f"{named} is no pass", where=name, do="write the reproducer again")
    return found


def _read(folder: Path) -> dict[str, Entry]:
    path = folder / FACTS
    try:
        facts = read_json(path).record(
            *("format", "version", "fxprune", "torch", "failed", "pipeline", "passes"),
            *("seed", "limit", "disable", "verify"),
        )
        found = facts["format"].text(), facts["version"].integer()
    except LoadError as error:
        raise LoadError(
            f"{folder} does not contain a reproducer",
            where=str(path),
            why=f"{error.what}: {error.do or error.why}",
            do="give the directory that was set with --reproducer or FXPRUNE_REPRODUCER",
        ) from error
    if found != (FORMAT, VERSION):
        raise LoadError(
            f"format {found[0][:80]} {found[1]} is not known",
            where=str(path),
            do="replay it with the version of fxprune that wrote it",
        )
    return facts
