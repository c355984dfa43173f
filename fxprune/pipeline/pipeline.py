"""A pipeline: passes in order and loops around them, as data and as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fxprune.errors import OptionError
from fxprune.pipeline.kinds import Pass, options_of
from fxprune.pipeline.registry import find_pass
from fxprune.pipeline.text import parse_steps
from fxprune.pipeline.values import read_options, show_value

Find = Callable[[str], type[Pass]]


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
    def parse(cls, text: str, find: Find = find_pass) -> Pipeline:
        """A pipeline from its text, `"fold-batchnorm | repeat{max=4}(drop-identity | dead-code)"`.

        Args:
            text: what a pipeline prints as; an empty one is a pipeline of no pass.
            find: gives the class of a pass by its name.

        Raises:
            OptionError: an unknown pass or option, a value of the wrong type, or broken syntax.
        """

        def make(
            name: str, options: dict[str, str], body: list[Pass | Repeat] | None
        ) -> Pass | Repeat:
            if body is not None:
                given = read_options(Repeat, name, options, skip=("body",))
                return Repeat(Pipeline(body), **given)
            found = find(name)
            return found(**read_options(found, name, options))

        steps: list[Pass | Repeat] = parse_steps(text, make)
        return cls(steps)

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
        return " | ".join(map(_show, self.steps))


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


def _show(step: Pass | Repeat) -> str:
    """A step as text; options of passes at their defaults are left out."""
    if isinstance(step, Repeat):
        options = {"until": step.until, "max": step.max}
        return f"repeat{_show_options(options)}({step.body})"
    return step.name + _show_options(options_of(step))


def _show_options(options: dict[str, Any]) -> str:
    shown = [f"{k.replace('_', '-')}={show_value(v)}" for k, v in options.items()]
    return "{" + " ".join(shown) + "}" if shown else ""
