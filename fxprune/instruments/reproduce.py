"""Records what is needed to repeat a failed run: a directory, and the command that replays it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fxprune import __version__
from fxprune.errors import FxpruneError, LoadError
from fxprune.graph.program import Program
from fxprune.io import load, save
from fxprune.pipeline.context import Context
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Pass
from fxprune.pipeline.pipeline import Pipeline
from fxprune.pipeline.registry import find_pass
from fxprune.pipeline.result import Result
from fxprune.pipeline.run import run_pipeline

FACTS, PROGRAM, ERROR = "reproducer.json", "program", "error.txt"


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


def replay(directory: str | os.PathLike[str]) -> Result:
    """Runs the pipeline that a `Reproducer` recorded; returns the result if it no longer fails.

    Raises:
        PipelineError: the pipeline failed again.
        LoadError: the directory contains no reproducer, or an incomplete one.
        OptionError: a pass of the pipeline is no longer installed.
    """
    folder = Path(directory)
    facts = _read(folder)
    program = load(folder / PROGRAM)
    pipeline = Pipeline.parse(facts["pipeline"], lambda name: _find(name, facts["passes"]))
    return run_pipeline(
        program,
        pipeline,
        verify=facts["verify"],
        disable=facts["disable"],
        limit=facts["limit"],
        seed=facts["seed"],
    )


def _write(
    target: Path, pipeline: Pipeline, program: Program, one: Pass, error: Exception, ctx: Context
) -> None:
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        save(program, aside / PROGRAM)
        facts = {
            "format": "fxprune-reproducer",
            "version": 1,
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
        (aside / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        text = f"{type(error).__name__}: {error}\n"
        (aside / ERROR).write_text(text, encoding="utf-8")
        aside.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_replaceable(target: Path) -> None:
    if target.exists() and not (target.is_dir() and _is_ours(target)):
        raise LoadError(
            f"will not overwrite {target}",
            why="it exists and is not a reproducer",
            do="choose another directory",
        )


def _is_ours(target: Path) -> bool:
    return (target / FACTS).is_file() or not any(target.iterdir())


def _classes(pipeline: Pipeline) -> dict[str, str]:
    """Returns the location of each pass's class, so that passes without an entry point are found too."""
    return {p.name: f"{type(p).__module__}:{type(p).__qualname__}" for p in pipeline.passes()}


def _find(name: str, classes: dict[str, str]) -> type[Pass]:
    module, _, path = classes.get(name, "").partition(":")
    try:
        found: Any = getattr(import_module(module), path)
    except (ImportError, AttributeError, ValueError):
        return find_pass(name)
    return found  # type: ignore[no-any-return]


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = facts["format"], facts["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"{folder} does not contain a reproducer",
            where=str(path),
            why=f"{type(error).__name__}: {error}",
            do="give the directory that was set with --reproducer or FXPRUNE_REPRODUCER",
        ) from error
    if found != ("fxprune-reproducer", 1):
        raise LoadError(
            f"format {found[0]} {found[1]} is not known",
            where=str(path),
            do="replay it with the version of fxprune that wrote it",
        )
    return facts
