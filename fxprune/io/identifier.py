"""Names that end up in the Python code which torch.fx writes of a graph: identifiers, and nothing else."""

from __future__ import annotations

import keyword

from fxprune.errors import LoadError
from fxprune.files.document import Entry


def is_identifier(name: str) -> bool:
    """Whether code can use a name for a value of its own."""
    magic = name.startswith("__") and name.endswith("__")
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and not magic


def read_identifier(entry: Entry) -> str:
    """A name."""
    if not is_identifier(entry.text()):
        entry.fail(f"is {entry.text()[:40]!r}, no name", "write letters, digits and underscores")
    return entry.text()


def check_identifier(name: str, where: str) -> str:
    """The name, where a saved graph may have it.

    Raises:
        LoadError: it may not.
    """
    if not is_identifier(name):
        raise LoadError(
            f"the name {name!r} cannot be saved",
            where=where,
            why="it is no name of Python's",
            do="give it another name",
        )
    return name
