"""The passes that are installed, ours and those of other packages."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

GROUP = "fxprune.passes"
_KINDS = {"analyse": "analysis", "decide": "decision", "__call__": "rewrite"}


@dataclass(frozen=True)
class Installed:
    """One pass: `does` is the first line of its docstring."""

    name: str
    kind: str
    does: str
    package: str


def installed() -> list[Installed]:
    """Every pass that some package offers, by name; one that cannot be imported says why."""
    return [_describe(e) for e in sorted(entry_points(group=GROUP), key=lambda e: e.name)]


def _describe(entry: EntryPoint) -> Installed:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "?"
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        return Installed(entry.name, "broken", str(error), package)
    kind = next((k for method, k in _KINDS.items() if method in vars(found)), "?")
    lines = (inspect.getdoc(found) or "").splitlines()
    return Installed(entry.name, kind, lines[0] if lines else "", package)
