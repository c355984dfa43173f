"""Pipelines as text and back: `insert-gates{scope=block} | repeat{max=4}(fold-batchnorm | dead-code)`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fxprune.errors import OptionError
from fxprune.pipeline.kinds import Pass, options_of
from fxprune.pipeline.pipeline import Pipeline, Repeat
from fxprune.pipeline.registry import find_pass
from fxprune.pipeline.values import Quoted, read_options, show_value

_TOKEN = re.compile(r'\s*(?:([|(){}=])|"((?:[^"\\]|\\.)*)"|([^\s|(){}="]+))')


def parse(text: str, find: Callable[[str], type[Pass]] = find_pass) -> Pipeline:
    """A pipeline from text; `show` undoes it.

    Args:
        text: the pipeline; an empty one is a pipeline of no pass.
        find: gives the class of a pass by its name.
    """
    try:
        return _Parser(text, find).parse()
    except RecursionError as error:
        raise OptionError(
            "the pipeline cannot be read", why="its loops are nested too deep", do="write fewer"
        ) from error


def show(pipeline: Pipeline) -> str:
    """The text of a pipeline; options of passes at their defaults are left out."""
    return " | ".join(_show_step(step) for step in pipeline.steps)


def _show_step(step: Pass | Repeat) -> str:
    if isinstance(step, Repeat):
        options = {"until": step.until, "max": step.max}
        return f"repeat{_show_options(options)}({show(step.body)})"
    return step.name + _show_options(options_of(step))


def _show_options(options: dict[str, Any]) -> str:
    shown = [f"{k.replace('_', '-')}={show_value(v)}" for k, v in options.items()]
    return "{" + " ".join(shown) + "}" if shown else ""


class _Parser:
    def __init__(self, text: str, find: Callable[[str], type[Pass]]) -> None:
        self._text, self._find = text, find
        self._tokens: list[tuple[str, str, int]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._error("a quote is not closed", at)
            mark, quoted, word = match.groups()
            value = mark or word if quoted is None else Quoted(re.sub(r"\\(.)", r"\1", quoted))
            start = match.end() - len(match.group().lstrip())
            self._tokens.append((mark or "word", value, start))
            at = match.end()
        self._next = 0

    def parse(self) -> Pipeline:
        pipeline = self._pipeline("end")
        if self._kind() != "end":
            raise self._error("something is left over")
        return pipeline

    def _pipeline(self, end: str) -> Pipeline:
        if self._kind() == end:
            return Pipeline([])
        steps = [self._step()]
        while self._kind() == "|":
            self._take("|")
            steps.append(self._step())
        return Pipeline(steps)

    def _step(self) -> Pass | Repeat:
        at = self._place()
        name = self._take("word")
        options = self._options() if self._kind() == "{" else {}
        if name == "repeat":
            self._take("(")
            body = self._pipeline(")")
            self._take(")")
            return Repeat(body, **read_options(Repeat, name, options, skip=("body",)))
        found = self._find(name)
        try:
            return found(**read_options(found, name, options))
        except TypeError as error:  # an option without a default was left out
            raise self._error(str(error), at) from error

    def _options(self) -> dict[str, str]:
        self._take("{")
        found: dict[str, str] = {}
        while self._kind() != "}":
            key = self._take("word").replace("-", "_")
            self._take("=")
            if key in found:
                raise self._error(f"option {key.replace('_', '-')} is given twice")
            found[key] = self._take("word")
        self._take("}")
        return found

    def _kind(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else "end"

    def _place(self) -> int:
        return self._tokens[self._next][2] if self._next < len(self._tokens) else len(self._text)

    def _take(self, kind: str) -> str:
        if self._kind() != kind:
            wanted = "a name or value" if kind == "word" else f"{kind!r}"
            raise self._error(f"{wanted} is missing")
        self._next += 1
        return self._tokens[self._next - 1][1]

    def _error(self, what: str, at: int | None = None) -> OptionError:
        place = self._place() if at is None else at
        return OptionError(
            f"the pipeline cannot be read: {what}",
            where=f"{self._text}\n        {' ' * place}^",
            do='write it as "a{option=value} | repeat{max=4}(b | c)"',
        )
