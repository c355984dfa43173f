"""Which sizes a plan changes, and in which modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx

from fxprune.graph.program import Program, module_path
from fxprune.plan import Plan, SetArgument


class Change(NamedTuple):
    """One size before and after.

    Attributes:
        path: the module that has it.
        source: what has this size, in words that are the same in modules of one class.
        old: its length before.
        new: its length after.
    """

    path: str
    source: str
    old: int
    new: int


class SizeChanges:
    """The sizes that a plan changes, by the module they are in; a module has those of its submodules too.

    Args:
        plan: of the captured model.
        small: its smaller program; None where the plan is not bound to one.
    """

    def __init__(self, plan: Plan, small: Program | None) -> None:
        self._near: dict[str, dict[int, dict[str, set[int]]]] = {}
        for change in (*_of_tensors(plan), *_of_nodes(plan, small)):
            for path in prefixes(change.path):
                inner = change.path[len(path) :].removeprefix(".")
                sources = self._near.setdefault(path, {}).setdefault(change.old, {})
                sources.setdefault(f"{inner}|{change.source}", set()).add(change.new)

    def sources(self, path: str, length: int) -> Mapping[str, set[int]]:
        """What has had this length inside a module and has changed -> its new lengths."""
        return self._near.get(path, {}).get(length, {})

    def lengths(self, path: str, length: int) -> list[int]:
        """The new lengths, ascending, of what has had this length inside a module and has changed."""
        return sorted(set().union(*self.sources(path, length).values()))


def prefixes(path: str) -> Iterator[str]:
    """Yields the paths of a module and of the modules that contain it."""
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


def _of_tensors(plan: Plan) -> Iterator[Change]:
    for name, cut in plan.kept.items():
        path, _, leaf = name.rpartition(".")
        for axis, positions in cut.items():
            yield Change(path, f"{leaf}:{axis}", plan.lengths[name][axis], len(positions))


def _of_nodes(plan: Plan, small: Program | None) -> Iterator[Change]:
    if plan.program is None or small is None:
        return
    paths = {n.name: n for n in plan.program.nodes}
    for edit in plan.edits:
        if isinstance(edit, SetArgument) and type(edit.old) is type(edit.new) is int:
            node = paths[edit.node]
            source = f"{node.target}.{edit.argument}.{edit.index}"
            yield Change(module_path(node), source, edit.old, edit.new)
    for node in small.nodes:
        if node.name in paths:
            yield from _of_value(paths[node.name], node)


def _of_value(before: fx.Node, after: fx.Node) -> Iterator[Change]:
    for i, (old, new) in enumerate(zip(shape_of(before), shape_of(after), strict=False)):
        if type(old) is type(new) is int and old != new:
            yield Change(module_path(before), f"{before.target}:{i}", old, new)


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """The sizes of what a node returns; none where that is no single tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
