"""What of a file may be imported and called: what the caller names, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from fxprune.errors import LoadError, OptionError
from fxprune.files.document import Entry

Trust = bool | str | Sequence[str]


def import_path(found: Any) -> str:
    """`package.module:path` of a class or function; "" where an import would not find it there."""
    module, path = getattr(found, "__module__", None), getattr(found, "__qualname__", "")
    if not isinstance(module, str) or not path:
        return ""
    try:
        return f"{module}:{path}" if attribute(sys.modules[module], path) is found else ""
    except (KeyError, AttributeError):
        return ""


def attribute(found: Any, path: str) -> Any:
    """What a dotted path leads to."""
    for part in path.split("."):
        found = getattr(found, part)
    return found


class Trusted:
    """What may be imported and called.

    Args:
        trust: everything, or names of modules, `package.module`, and of callables, `package.module:callable`.
        known: classes that are allowed besides.
    """

    def __init__(self, trust: Trust, known: Iterable[type] = ()) -> None:
        self._all = trust is True
        names = [trust] if isinstance(trust, str) else [] if isinstance(trust, bool) else trust
        if not all(isinstance(n, str) for n in names):
            raise OptionError("trust holds what is no name", do='write trust=("package.module",)')
        self._names = list(names)
        self._known = {import_path(k): k for k in known}

    def find(self, entry: Entry, what: str) -> Any:
        """The class or function that an entry names; `what` it is for."""
        name = entry.text()
        if name in self._known:
            return self._known[name]
        module, colon, path = name.partition(":")
        parts = path.split(".")
        if not colon or not all(p.isidentifier() and not p.startswith("__") for p in parts):
            if not name:
                self._refuse(name, what, "it was built by a function without an import path")
            entry.fail(f"is {name[:80]!r}, no import path", "save it again")
        if not self._allows(name, module):
            self._refuse(name, what, "to import and call what a file names would run code of it")
        try:
            found = attribute(import_module(module), path)
        except Exception as error:  # a module of the user's: anything may come
            entry.fail(
                f"{name[:80]!r} cannot be imported: {type(error).__name__}: {error}"[:240],
                "run where Python finds it, or pass model=... or build=...",
            )
        if not callable(found):
            entry.fail(f"{name[:80]!r} is nothing to call", "save it again")
        home = getattr(found, "__module__", None)
        if not (self._all or name in self._names or self._allows("", str(home))):
            self._refuse(name, what, f"it is of {home}, which trust does not name")
        return found

    def _allows(self, name: str, module: str) -> bool:
        return self._all or any(
            n == name or (":" not in n and n and f"{module}.".startswith(f"{n}."))
            for n in self._names
        )

    def _refuse(self, name: str, what: str, why: str) -> NoReturn:
        trust = (
            f'; or trust=("{name[:80]}",), on the command line --trust, if you trust it'
            if name
            else ""
        )
        raise LoadError(
            f"nothing allows to build {what}",
            where=name[:80],
            why=why,
            do=f"pass model=..., a new model of the original size; or build=..., its class{trust}",
        )
