"""The exceptions of fxprune: each one says what is wrong, where, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FxpruneError(Exception):
    """Base class of every error that fxprune raises on purpose.

    Args:
        what: the fact, in one line.
        where: the node, parameter, file or option that is concerned.
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
    """The model could not be captured as a `Program`."""


class InputError(FxpruneError):
    """A captured network is called with inputs for which its graph does not hold."""


class OptionError(FxpruneError):
    """An option or an argument has a value that cannot be used."""


class BudgetError(FxpruneError):
    """The pruning target cannot be reached, or nothing can be removed."""


class ScoreError(FxpruneError):
    """Importance scores cannot be computed: weights or losses are not finite, or data is missing."""


class PlanError(FxpruneError):
    """A pruning plan contradicts itself or belongs to another model."""


class VerifyError(FxpruneError):
    """The smaller program does not compute the same outputs as the silenced original."""


class PipelineError(FxpruneError):
    """A pass failed, or changed something that it declares to preserve.

    Attributes:
        program: the program as it was before that pass; the caller's own program and model are unchanged.
        failed: the name of the pass.
    """

    def __init__(
        self, what: str, *, program: Any, failed: str, where: str = "", why: str = "", do: str = ""
    ) -> None:
        super().__init__(what, where=where, why=why, do=do)
        self.program, self.failed = program, failed


class LoadError(FxpruneError):
    """A saved program is incomplete, was altered, or has an unknown format."""


def some(names: Sequence[str], shown: int = 4) -> str:
    """The first of some names, and how many more there are, for a message.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
