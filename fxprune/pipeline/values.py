"""Option values as text and back, typed by the fields of the pass."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fxprune.errors import OptionError
from fxprune.pipeline.kinds import option_fields

_PLAIN = re.compile(r'[^\s|(){}="]+')
_PART = re.compile(r"((?:[^\\,]|\\.|\\\Z)*)(?:,|\Z)", re.DOTALL)


class Quoted(str):
    """Text that stood in quotes: `"none"` is a word where `none` is None."""

    __slots__ = ()


def show_value(value: Any) -> str:
    """An option value as text: `none`, `true`, `0.5`, `1,2`; in quotes where it needs them."""
    if isinstance(value, tuple):
        parts = [_escaped(_bare(v)) for v in value]
        return _quoted(",".join(parts) + ("," if parts and not parts[-1] else ""))
    return '"none"' if value == "none" else _quoted(_bare(value))


def _bare(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def _escaped(part: str) -> str:
    return part.replace("\\", "\\\\").replace(",", "\\,")


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def read_options(
    owner: type, name: str, given: Mapping[str, str], skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Typed values of options given as text.

    Raises:
        OptionError: an unknown option, named with the nearest right one, or a value of the wrong type.
    """
    hints = get_type_hints(owner)
    known = [f.name for f in option_fields(owner) if f.name not in skip]
    for key in given:
        if key not in known:
            raise _unknown(name, key, known)
    return {k: _read(hints[k], v, f"{name}{{{_spelt(k)}={v}}}") for k, v in given.items()}


def _unknown(name: str, key: str, known: list[str]) -> OptionError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
    return OptionError(
        f"{name} has no option {_spelt(key)!r}",
        why=f"the nearest is {_spelt(near[0])!r}" if near else "",
        do=f"its options are {', '.join(map(_spelt, known)) or 'none'}",
    )


def _spelt(key: str) -> str:
    return key.replace("_", "-")


def _read(kind: Any, text: str, where: str) -> Any:
    origin = get_origin(kind)
    if origin is Literal:
        return _read_choice(get_args(kind), text, where)
    if origin in (Union, UnionType):
        return _read_any(get_args(kind), text, where)
    if origin is tuple:
        return _read_tuple(get_args(kind), text, where)
    if kind is bool:
        return _read_choice(("true", "false"), text, where) == "true"
    try:
        return str(text) if kind is str else kind(text)
    except (ValueError, TypeError) as error:
        raise OptionError(
            f"{text!r} is no {kind.__name__}",
            where=where,
            do=f"give a value of type {kind.__name__}",
        ) from error


def _read_any(kinds: tuple[Any, ...], text: str, where: str) -> Any:
    """The value by the first type that takes it; any text is a str, so that comes last."""
    if NoneType in kinds and text == "none" and not isinstance(text, Quoted):
        return None
    others = sorted((k for k in kinds if k is not NoneType), key=lambda k: k is str)
    for kind in others[:-1]:
        try:
            return _read(kind, text, where)
        except OptionError:
            continue
    return _read(others[-1], text, where)


def _read_tuple(kinds: tuple[Any, ...], text: str, where: str) -> tuple[Any, ...]:
    parts = _split(text)
    if kinds[-1] is Ellipsis:
        return tuple(_read(kinds[0], part, where) for part in parts)
    if len(parts) != len(kinds):
        raise OptionError(
            f"{len(parts)} values in place of {len(kinds)}",
            where=where,
            do="put commas between them: 1,2",
        )
    return tuple(_read(k, part, where) for k, part in zip(kinds, parts, strict=True))


def _split(text: str) -> list[str]:
    r"""The parts between commas; `\,` is a comma of a part, a last comma ends the last part."""
    parts, at = list[str](), 0
    while at < len(text):
        match = _PART.match(text, at)
        assert match is not None  # it takes any text
        parts.append(re.sub(r"\\(.)", r"\1", match.group(1), flags=re.DOTALL))
        at = match.end()
    return parts


def _read_choice(choices: tuple[Any, ...], text: str, where: str) -> Any:
    for choice in choices:
        if _bare(choice) == text:
            return choice
    near = difflib.get_close_matches(text, list(map(_bare, choices)), n=1, cutoff=0.3)
    raise OptionError(
        f"{text!r} is none of {', '.join(map(_bare, choices))}",
        where=where,
        why=f"the nearest is {near[0]!r}" if near else "",
        do="give one of them",
    )
