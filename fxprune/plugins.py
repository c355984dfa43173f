"""Extensions that other packages declare as entry points; each is loaded when it is first needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fxprune.errors import OptionError

FUNCTIONS = "fxprune.functions"  # entry points of functions that text may name: name -> package.module:function
_TRUSTED: ContextVar[bool] = ContextVar("fxprune_trusted", default=False)


def load_plugin(entry: EntryPoint) -> Any:
    """Imports and returns the object that an entry point names.

    Raises:
        OptionError: the object cannot be imported; the message names the package that declares it.
    """
    try:
        return entry.load()
    except Exception as error:  # the code of another package: anything may come
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package"
        raise OptionError(
            f"{entry.name!r} of {package} cannot be loaded",
            where=f"{entry.group}: {entry.value}",
            why=f"{type(error).__name__}: {error}",
            do="repair or uninstall that package",
        ) from error


def find_entry(group: str, name: str, what: str, *, do: str, choose: str) -> EntryPoint:
    """The one entry point of a name in a group.

    Args:
        group: of entry points.
        name: of the entry point.
        what: one word for what the group holds.
        do: what to do where there is none of that name.
        choose: what to do where several packages have one, instead of uninstalling all others.

    Raises:
        OptionError: no package or more than one declares it.
    """
    found = list(dict.fromkeys(entry_points(group=group, name=name)))
    if not found:
        every = sorted({e.name for e in entry_points(group=group)})
        near = get_close_matches(name, every, n=1, cutoff=0.4)
        why = f"the nearest name is {near[0]!r}" if near else f"there are {', '.join(every)}"
        raise OptionError(f"there is no {what} {name!r}", why=why, do=do)
    if len(found) > 1:
        raise OptionError(
            f"{len(found)} packages have a {what} {name!r}",
            where=", ".join(e.value for e in found),
            do=f"uninstall one, or {choose}",
        )
    return found[0]


def load_plugins(group: str) -> None:
    """Imports every module that other packages declare under an entry-point group, such as `fxprune.rules`.

    Raises:
        OptionError: one of the modules cannot be imported.
    """
    for entry in sorted(set(entry_points(group=group))):
        load_plugin(entry)


@contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Lets text and files name functions and classes of any module in the block, and imports these."""
    before = _TRUSTED.set(trust)
    try:
        yield
    finally:
        _TRUSTED.reset(before)


def find_named(name: str, do: str = "") -> Any:
    """What `package.module:path` names, which text or a file says.

    An import runs a module, so only what the process has imported itself is looked into, or what an entry
    point of the group `fxprune.functions` names; anything else inside of `trusting` alone.

    Args:
        name: of a function or a class.
        do: how to write it rightly, for errors.

    Raises:
        OptionError: it is not there, or may not be imported.
    """
    module, _, path = name.partition(":")
    if module not in sys.modules and not _may_import(name):
        raise OptionError(
            f"{name} is in a module that was not imported",
            why="an import runs the module, and a text or a file may name any",
            do=f"import {module} first; or, where you trust it, pass --trust (in Python trust=True)",
        )
    try:
        found: Any = sys.modules.get(module) or import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"there is no function {name}", why=str(error), do=do) from error
    return found


def _may_import(name: str) -> bool:
    return _TRUSTED.get() or any(e.value == name for e in entry_points(group=FUNCTIONS))
