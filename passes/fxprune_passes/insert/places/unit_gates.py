"""Inserts the gates of dependency groups into a graph at the places found for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from operator import getitem
from typing import Any

import torch
from torch import fx

from fxprune.graph.editor import Editor
from fxprune_passes.insert.places.unit_places import Places

aten = torch.ops.aten


@dataclass(frozen=True)
class _Part:
    """The gates of one module on a range of positions of an axis; see `Place`."""

    path: str
    axis: int
    tiled: bool
    span: range

    def is_beside(self, other: _Part) -> bool:
        """Whether two parts lie along the same axis and have no position in common."""
        a, b = self.span, other.span
        return self.axis == other.axis and (a.stop <= b.start or b.stop <= a.start)


_Row = tuple[_Part, ...]


def write_unit_gates(editor: Editor, placed: Mapping[str, Places]) -> None:
    """Inserts calls of gates before the operators that sum over the gated units.

    Where several gates apply to parts of one axis, as after a concatenation, the value is split, each part is
    multiplied by its gates, and the parts are concatenated again.

    Args:
        editor: the editor of the graph, which contains the gate modules.
        placed: the places of each gate module by its path.
    """
    order = {node.name: i for i, node in enumerate(editor.nodes)}
    parts: dict[tuple[fx.Node, fx.Node], list[_Part]] = {}
    for path, place in ((path, x) for path, places in placed.items() for x in places.places):
        own = parts.setdefault((place.node, place.user), [])
        own.append(_Part(path, place.axis, place.tiled, place.span))
    writer = _Writer(editor)
    for node, user in sorted(parts, key=lambda pair: order[pair[1].name]):
        writer.write(editor.node(node), editor.node(user), _rows(parts[node, user]))


def _rows(parts: Iterable[_Part]) -> list[_Row]:
    """The parts in rows that one split can serve, each row in the order of its positions."""
    rows: list[list[_Part]] = []
    for part in parts:
        row = next((r for r in rows if all(part.is_beside(x) for x in r)), None)
        if row is None:
            rows.append(row := [])
        row.append(part)
    return [tuple(sorted(row, key=lambda part: part.span.start)) for row in rows]


class _Writer:
    """Inserts each call once and in execution order: the first call of a gate draws its sample."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._known: dict[tuple[fx.Node, _Row], fx.Node] = {}
        self._drawn: set[str] = set()

    def write(self, node: fx.Node, user: fx.Node, rows: Iterable[_Row]) -> None:
        """Makes a user of a node read the gated value instead."""
        value = node
        for row in rows:
            key = value, row
            if key not in self._known:
                self._known[key] = self._gated(value, row, before=user)
            value = self._known[key]
        user.replace_input_with(node, value)

    def _gated(self, value: fx.Node, row: _Row, before: fx.Node) -> fx.Node:
        axis, length = row[0].axis, value.meta["val"].shape[row[0].axis]
        if row[0].span == range(length):
            return self._gate(value, row[0], before)
        bounds = sorted({0, length, *(x for p in row for x in (p.span.start, p.span.stop))})
        sizes = [b - a for a, b in pairwise(bounds)]
        split = self._call(aten.split_with_sizes.default, (value, sizes, axis), before, value)
        gates = {p.span.start: p for p in row}
        parts = []
        for i, start in enumerate(bounds[:-1]):
            part = self._call(getitem, (split, i), before, value)
            parts.append(self._gate(part, gates[start], before) if start in gates else part)
        return self._call(aten.cat.default, (parts, axis), before, value)

    def _call(self, target: Any, args: Any, before: fx.Node, like: fx.Node) -> fx.Node:
        return self._editor.call(target, args, before=before, like=like)

    def _gate(self, value: fx.Node, part: _Part, before: fx.Node) -> fx.Node:
        draws = part.path not in self._drawn
        self._drawn.add(part.path)
        args = value, part.axis, draws, part.tiled
        return self._editor.call_leaf(part.path, args, before=before, like=value)
