"""A pipeline as data: passes in order, and loops around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fxprune.errors import OptionError
from fxprune.pipeline.kinds import Pass


@dataclass(frozen=True, init=False)
class Pipeline:
    """Passes that run one after the other; prints as the text that `fp.Pipeline.parse` reads."""

    steps: tuple[Pass | Repeat, ...]

    def __init__(self, steps: Sequence[Pass | Repeat | Pipeline]) -> None:
        flat: list[Pass | Repeat] = []
        for step in steps:
            if isinstance(step, Pipeline):
                flat += step.steps
            elif isinstance(step, Pass | Repeat):
                flat.append(step)
            else:
                raise OptionError(
                    f"{step!r} is no pass",
                    where="Pipeline",
                    do="give instances of passes: DropIdentity(); fp.fx_pass(function) makes one of a function",
                )
        object.__setattr__(self, "steps", tuple(flat))

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """A pipeline from its text, `"fold-batchnorm | repeat{max=4}(drop-identity | dead-code)"`.

        Raises:
            OptionError: an unknown pass or option, a value of the wrong type, or broken syntax.
        """
        from fxprune.pipeline.text import parse

        return parse(text)

    def passes(self) -> Iterator[Pass]:
        """Its passes in order, those of loops too."""
        for step in self.steps:
            if isinstance(step, Repeat):
                yield from step.body.passes()
            else:
                yield step

    def __iter__(self) -> Iterator[Pass | Repeat]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        from fxprune.pipeline.text import show

        return show(self)


@dataclass(frozen=True)
class Repeat:
    """Runs a pipeline until it changes nothing, at most `max` times."""

    body: Pipeline
    until: Literal["unchanged"] = "unchanged"
    max: int = 8

    def __post_init__(self) -> None:
        if self.max < 1:
            raise OptionError(
                f"repeat: max={self.max}", why="a loop runs at least once", do="give max >= 1"
            )
