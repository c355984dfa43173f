"""What other packages add, by entry points; loaded when it is first looked for."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fxprune.errors import OptionError


def load_plugin(entry: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        OptionError: it cannot be imported; says which package offers it.
    """
    try:
        return entry.load()
    except Exception as error:  # the code of another package: anything may come
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package"
        raise OptionError(
            f"{entry.name!r} of {package} cannot be loaded",
            where=f"{entry.group}: {entry.value}",
            why=f"{type(error).__name__}: {error}",
            do="mend or uninstall that package",
        ) from error


def load_plugins(group: str) -> None:
    """Imports every module that other packages register things in, `fxprune.rules` say.

    Raises:
        OptionError: one of them cannot be imported.
    """
    for entry in sorted(set(entry_points(group=group))):
        load_plugin(entry)
