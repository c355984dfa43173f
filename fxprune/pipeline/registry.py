"""Passes by name, from the entry points of every installed package."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fxprune.errors import OptionError
from fxprune.pipeline.kinds import Analysis, Decision, Pass, PlainRewrite, option_fields
from fxprune.pipeline.values import show_value
from fxprune.plugins import find_entry, load_plugin

GROUP = "fxprune.passes"
_KINDS = {Analysis: "analysis", Decision: "decision", PlainRewrite: "rewrite"}


@dataclass(frozen=True)
class Installed:
    """One pass: `does` is the first line of its docstring, `keeps` what it leaves as it was."""

    name: str
    kind: str
    does: str
    keeps: str
    options: str
    package: str


def installed() -> list[Installed]:
    """Every pass that some package offers, by name; one that cannot be imported says why."""
    return [_describe(e) for e in sorted(entry_points(group=GROUP), key=lambda e: e.name)]


def find_pass(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        OptionError: no package or more than one offers it, or it cannot be imported.
    """
    entry = find_entry(
        GROUP,
        name,
        "pass",
        do="`fxprune passes` lists them",
        choose="use the class itself in fp.Pipeline([...])",
    )
    return _load(entry)


def _load(entry: EntryPoint) -> type[Pass]:
    loaded = load_plugin(entry)
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        raise OptionError(
            f"the entry point {entry.name!r} names no pass",
            where=entry.value,
            do="let it name a class derived from Analysis, Decision or Rewrite",
        )
    return loaded


def _describe(entry: EntryPoint) -> Installed:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "?"
    try:
        found = _load(entry)
    except OptionError as error:
        return Installed(entry.name, "broken", error.why or error.what, "", "", package)
    kind = next((k for c, k in _KINDS.items() if issubclass(found, c)), "?")
    lines = (inspect.getdoc(found) or "").splitlines()
    options = " ".join(map(_option, option_fields(found)))
    return Installed(entry.name, kind, lines[0] if lines else "", found.keeps, options, package)


def _option(field: Field[Any]) -> str:
    """`scope=block`, as in a pipeline's text; an option that must be given has no value."""
    name = field.name.replace("_", "-")
    if field.default is MISSING and field.default_factory is MISSING:
        return f"{name}=..."
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return f"{name}={show_value(default)}"
