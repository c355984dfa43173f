"""What looks on while a pipeline runs."""

from __future__ import annotations

from fxprune.graph.program import Program
from fxprune.pipeline.context import Context
from fxprune.pipeline.kinds import Pass
from fxprune.pipeline.pipeline import Pipeline
from fxprune.pipeline.result import Result


class Instrument:
    """Hooks around passes; those before run in order, those after in reverse.

    The check of `verify=True` comes first before a pass and last behind it, so that instruments see what
    a pass made even where the check then rejects it.

    An error raised by `after_pass` rejects the pass: its program is dropped.
    """

    def before_run(self, pipeline: Pipeline, program: Program, ctx: Context) -> None:
        """Before the first pass."""

    def before_pass(self, one: Pass, program: Program, ctx: Context) -> None:
        """Before a pass."""

    def after_pass(self, one: Pass, before: Program, after: Program, ctx: Context) -> None:
        """After a pass; `after is before` where it changed nothing."""

    def on_failure(self, one: Pass, before: Program, error: Exception, ctx: Context) -> str:
        """After a pass or a check of it raised; what it returns is added to the error's advice."""
        return ""

    def after_run(self, result: Result) -> None:
        """After the last pass."""
