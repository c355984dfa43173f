"""All observers of a program as one collection."""

from __future__ import annotations

import json
from typing import Any, Self

from tabulate import tabulate
from torch import fx

from fxprune.graph.leaf import leaf_of
from fxprune.graph.program import Program
from fxprune.observe.observer import Observer


def observers(program: Program) -> Observers:
    """Returns the observers of a program by their paths, in execution order."""
    paths = observer_nodes(program)
    modules = {path: program.module.get_submodule(path) for path in paths}
    return Observers({p: m for p, m in modules.items() if isinstance(m, Observer)})


def observer_nodes(program: Program) -> dict[str, list[fx.Node]]:
    """Returns the nodes that call each observer of a program, by the observer's path, in execution order."""
    found: dict[str, list[fx.Node]] = {}
    for node in program.graph.find_nodes(op="call_module"):
        if isinstance(leaf_of(program.module, node), Observer):
            found.setdefault(str(node.target), []).append(node)
    return found


class Observers(dict[str, Observer]):
    """The observers of a program by their paths; prints as a table."""

    def __str__(self) -> str:
        header = ["observer", "statistic", "units", "seen", "of units", "mean", "min", "max"]
        rows = [row for path, one in self.items() for row in _summary(path, one)]
        return tabulate(rows, header, floatfmt=".4g") if rows else "no observers"

    def to_json(self) -> dict[str, Any]:
        """Returns plain data: the table of each observer, with null for numbers that JSON cannot represent."""
        return {path: json.loads(_spell(one.table())) for path, one in self.items()}

    def all_reduce(self) -> Self:
        """Merges the counts of all processes, observer by observer; returns the collection."""
        for one in self.values():
            one.all_reduce()
        return self

    def freeze(self, frozen: bool = True) -> Self:
        """Stops counting, or resumes it with `frozen=False`; returns the collection."""
        for one in self.values():
            one.freeze(frozen)
        return self

    def reset(self) -> Self:
        """Clears all counts and resumes counting; returns the collection."""
        for one in self.values():
            one.reset()
        return self


def _summary(path: str, one: Observer) -> list[list[Any]]:
    """Returns a row for each statistic that has one number per unit."""
    rows: list[list[Any]] = []
    for name, value in one.statistics().items():
        if value.dim() < 2:
            flat = value.double().reshape(-1)
            numbers = [float(x) for x in (flat.mean(), flat.min(), flat.max())] if len(flat) else []
            rows.append([path, one.stat, len(flat), int(one.seen), name, *numbers])
    return rows


def _spell(table: dict[str, Any]) -> str:
    return json.dumps(_finite(table), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
