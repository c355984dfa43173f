"""Errors that say what is wrong, where, why, and what to do about it."""

from __future__ import annotations

from typing import Any


class FxpruneError(Exception):
    """Base of every error fxprune raises on purpose.

    Args:
        what: one line, the fact.
        where: the node, parameter, file or option concerned.
        why: the cause, as far as it is known.
        do: what the reader can do about it.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", do: str = "") -> None:
        super().__init__(what, where, why, do)
        self.what, self.where, self.why, self.do = what, where, why, do

    def __str__(self) -> str:
        parts = (("where", self.where), ("why", self.why), ("do", self.do))
        return "\n".join([self.what, *(f"  {k:<5} {v}" for k, v in parts if v)])


class CaptureError(FxpruneError):
    """The model could not be turned into a Program."""


class OptionError(FxpruneError):
    """An option has a value that cannot be used."""


class BudgetError(FxpruneError):
    """The target cannot be reached, or nothing can be removed."""


class ScoreError(FxpruneError):
    """Importance cannot be worked out: weights or losses that are not finite, or data that is missing."""


class PlanError(FxpruneError):
    """A plan is inconsistent, was edited wrongly, or belongs to another model."""


class VerifyError(FxpruneError):
    """The smaller program does not compute what the silenced original computes."""


class PipelineError(FxpruneError):
    """A pass failed, or broke what it declares to keep.

    Attributes:
        program: the program before that pass; nothing of the user's has changed.
        failed: name of the pass.
    """

    def __init__(
        self, what: str, *, program: Any, failed: str, where: str = "", why: str = "", do: str = ""
    ) -> None:
        super().__init__(what, where=where, why=why, do=do)
        self.program, self.failed = program, failed


class LoadError(FxpruneError):
    """A saved program is incomplete, altered or of an unknown format."""
