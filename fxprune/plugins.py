"""Extensions that other packages declare as entry points; each is loaded when it is first needed."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fxprune.errors import OptionError


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


def load_plugins(group: str) -> None:
    """Imports every module that other packages declare under an entry-point group, such as `fxprune.rules`.

    Raises:
        OptionError: one of the modules cannot be imported.
    """
    for entry in sorted(set(entry_points(group=group))):
        load_plugin(entry)
