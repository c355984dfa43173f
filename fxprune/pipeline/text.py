"""Pipelines as text and back: `insert-gates{scope=block} | repeat{max=4}(fold-batchnorm | dead-code)`."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fxprune.errors import OptionError
from fxprune.pipeline.kinds import Pass, options_of
from fxprune.pipeline.pipeline import Pipeline, Repeat
from fxprune.pipeline.registry import find_pass

_TOKEN = re.compile(r'\s*(?:([|(){}=])|"((?:[^"\\]|\\.)*)"|([^\s|(){}="]+))')
_PLAIN = re.compile(r'[^\s|(){}="]+')


def parse(text: str) -> Pipeline:
    """A pipeline from text; `show` undoes it."""
    return _Parser(text).parse()


def show(pipeline: Pipeline) -> str:
    """The text of a pipeline; options at their defaults are left out."""
    return " | ".join(_show_step(step) for step in pipeline.steps)


def _show_step(step: Pass | Repeat) -> str:
    if isinstance(step, Repeat):
        options = {"until": step.until, "max": step.max}
        return f"repeat{_show_options(options)}({show(step.body)})"
    return step.name + _show_options(options_of(step))


def _show_options(options: dict[str, Any]) -> str:
    shown = [f"{k.replace('_', '-')}={_show_value(v)}" for k, v in options.items()]
    return "{" + " ".join(shown) + "}" if shown else ""


def _show_value(value: Any) -> str:
    if isinstance(value, tuple):
        return _quoted(",".join(str(v) for v in value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return _quoted(repr(value) if isinstance(value, float) else str(value))


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._error("a quote is not closed", at)
            mark, quoted, word = match.groups()
            kind = mark or "word"
            value = mark or (re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else word)
            self._tokens.append((kind, value, match.end() - len(match.group().lstrip())))
            at = match.end()
        self._next = 0

    def parse(self) -> Pipeline:
        pipeline = self._pipeline()
        if self._kind() != "end":
            raise self._error("something is left over")
        return pipeline

    def _pipeline(self) -> Pipeline:
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
            body = self._pipeline()
            self._take(")")
            return Repeat(body, **read_options(Repeat, name, options, skip=("body",)))
        found = find_pass(name)
        try:
            return found(**read_options(found, name, options))
        except TypeError as error:  # an option without a default was left out
            raise self._error(str(error), at) from error

    def _options(self) -> dict[str, str]:
        self._take("{")
        found: dict[str, str] = {}
        while self._kind() != "}":
            key = self._take("word")
            self._take("=")
            if key.replace("-", "_") in found:
                raise self._error(f"option {key} is given twice")
            found[key.replace("-", "_")] = self._take("word")
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


def read_options(
    owner: type, name: str, given: dict[str, str], skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Typed values of options given as text.

    Raises:
        OptionError: an unknown option, named with the nearest right one, or a value of the wrong type.
    """
    hints = get_type_hints(owner)
    known = [f.name for f in fields(owner) if f.name not in skip]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
            raise OptionError(
                f"{name} has no option {key.replace('_', '-')!r}",
                why=f"the nearest is {near[0].replace('_', '-')!r}" if near else "",
                do=f"its options are {', '.join(k.replace('_', '-') for k in known) or 'none'}",
            )
    return {k: _read(hints[k], v, f"{name}{{{k.replace('_', '-')}={v}}}") for k, v in given.items()}


def _read(kind: Any, text: str, where: str) -> Any:
    origin = get_origin(kind)
    if origin is Literal:
        return _read_choice(get_args(kind), text, where)
    if origin in (Union, UnionType):
        if NoneType in get_args(kind) and text == "none":
            return None
        kind = next(k for k in get_args(kind) if k is not NoneType)
        return _read(kind, text, where)
    if origin is tuple:
        return tuple(_read(get_args(kind)[0], part, where) for part in text.split(",") if part)
    if kind is bool:
        return _read_choice(("true", "false"), text, where) == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise OptionError(
            f"{text!r} is no {kind.__name__}",
            where=where,
            do=f"give a value of type {kind.__name__}",
        ) from error


def _read_choice(choices: tuple[Any, ...], text: str, where: str) -> Any:
    for choice in choices:
        if str(choice) == text:
            return choice
    near = difflib.get_close_matches(text, [str(c) for c in choices], n=1, cutoff=0.3)
    raise OptionError(
        f"{text!r} is none of {', '.join(str(c) for c in choices)}",
        where=where,
        why=f"the nearest is {near[0]!r}" if near else "",
    )
