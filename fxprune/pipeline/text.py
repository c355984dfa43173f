"""The text of a pipeline, taken apart: `insert-gates{scope=block} | repeat{max=4}(fold-batchnorm | dead-code)`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, TypeVar

from fxprune.errors import OptionError
from fxprune.pipeline.values import Quoted

T = TypeVar("T")
Make = Callable[[str, dict[str, str], list[T] | None], T]

_TOKEN = re.compile(r'\s*(?:([|(){}=])|"((?:[^"\\]|\\.)*)"|([^\s|(){}="]+))')


def parse_steps(text: str, make: Make[T]) -> list[T]:
    """The steps of a pipeline, in order.

    Args:
        text: the pipeline; an empty one has no step.
        make: gives a step of its name, its options and, of a loop, the steps inside; a TypeError where an
            option is missing.

    Raises:
        OptionError: the text cannot be read, or `make` cannot do with it.
    """
    try:
        return _Parser(text, make).parse()
    except RecursionError as error:
        raise OptionError(
            "the pipeline cannot be read",
            why="its loops are nested too deeply",
            do="write fewer nested loops",
        ) from error


class _Parser(Generic[T]):
    def __init__(self, text: str, make: Make[T]) -> None:
        self._text, self._make = text, make
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

    def parse(self) -> list[T]:
        steps = self._steps("end")
        if self._kind() != "end":
            raise self._error("something is left over")
        return steps

    def _steps(self, end: str) -> list[T]:
        if self._kind() == end:
            return []
        steps = [self._step()]
        while self._kind() == "|":
            self._take("|")
            steps.append(self._step())
        return steps

    def _step(self) -> T:
        at = self._place()
        name = self._take("word")
        options = self._options() if self._kind() == "{" else {}
        body = None
        if name == "repeat":
            self._take("(")
            body = self._steps(")")
            self._take(")")
        try:
            return self._make(name, options, body)
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
            do='write it as "a{option=value other=value} | repeat{max=4}(b | c)"',
        )
