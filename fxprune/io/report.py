"""The report of a saved directory, whatever kind of directory it is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from fxprune.errors import LoadError
from fxprune.io.directory import PLAN, PROGRAM, REPORT, checked, kind_of, read_json
from fxprune.plan import Plan
from fxprune.report import Report, read_report


def has_report(directory: str | os.PathLike[str]) -> bool:
    """Whether there is a directory with the report of a pruning; what is in it may still be damaged."""
    return all((Path(directory) / name).is_file() for name in (PLAN, REPORT))


def load_report(directory: str | os.PathLike[str]) -> Report:
    """Reads the report of a pruning, with its plan, from a directory that `fp.save` wrote.

    Raises:
        LoadError: a file is missing, truncated or altered, or the directory has no report.
        PlanError: the plan in it is none.
    """
    folder = Path(directory)
    with checked(folder, kind_of(folder) or PROGRAM) as files:
        if REPORT not in files or PLAN not in files:
            raise LoadError(
                f"{folder} has no report",
                where=str(folder),
                why="what was saved is a program or a model, and not the outcome of a pruning",
                do="save the outcome: fp.save(fp.prune(...), directory), or fxprune prune --out",
            )
        return replace(read_report(read_json(files[REPORT])), plan=Plan.load(files[PLAN]))
