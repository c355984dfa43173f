"""Finds the places for the gates of a dependency group: the values that operators sum over next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import fx

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes
from fxprune.analysis.group import Group
from fxprune.graph.leaf import leaf_of
from fxprune.graph.program import Program
from fxprune.structure.paths import operator
from fxprune.structure.zeros import CONTRACTIONS, RECURRENT
from fxprune_passes.rewrite.scales.mean_square import is_mean_square

# They keep, drop or repeat numbers and change none: a gate may stand before them as well as after them.
MOVERS = frozenset(
    (
        "_unsafe_view alias alpha_dropout cat chunk clone contiguous detach dropout expand "
        "feature_dropout flatten movedim narrow permute pixel_shuffle pixel_unshuffle reshape roll "
        "select slice split split_with_sizes squeeze stack swapaxes tensor_split to transpose unbind "
        "unflatten unfold unsqueeze view"
    ).split(" ")
)


class UnplaceableError(Exception):
    """The gates of a group have no place; the message says why."""


@dataclass(frozen=True)
class Place:
    """The gates of a group apply to an axis of `node` where `user` reads it; see `Gate.forward`.

    Attributes:
        node: the value.
        axis: the axis of the value along which the units lie.
        user: the node that reads the gated value.
        tiled: whether the units repeat along the axis, so that the positions of one unit are not adjacent.
        span: the contiguous positions of the axis that belong to the group.
    """

    node: fx.Node
    axis: int
    user: fx.Node
    tiled: bool
    span: range


@dataclass(frozen=True, eq=False)
class Places:
    """All places for the gates of one group.

    Attributes:
        order: the units of the group in the order that they have at every place.
        places: the places.
    """

    order: IntArray
    places: tuple[Place, ...]


@dataclass
class _Search:
    program: Program
    axes: Axes
    inside: np.ndarray
    count: int
    order: IntArray | None = None
    found: dict[Place, None] = field(default_factory=dict)
    moved: dict[fx.Node, None] = field(default_factory=dict)


def norms_over(axes: Axes, group: Group) -> list[fx.Node]:
    """The operators that take statistics over units of the group: without a unit they would be others."""
    inside = np.zeros(axes.n_units, bool)
    inside[group.units] = True
    return [
        node
        for node, marks in axes.marks.items()
        if not is_mean_square(node)
        and any(inside[c].any() for x in marks.statistics for c in axes.final(x).columns)
    ]


def find_places(program: Program, axes: Axes, group: Group) -> Places:
    """The places that together cover every sum over a unit of the group exactly once.

    Raises:
        UnplaceableError: at some operator the units do not lie in the same order along an axis.
    """
    inside = np.zeros(axes.n_units, bool)
    inside[group.units] = True
    search = _Search(program, axes, inside, len(group))
    for consumer, operand, axis in _summed(search):
        _walk(search, operand, axis, consumer)
    if search.order is None:
        raise UnplaceableError("no operator sums over its units")
    _check_readers(search)
    return Places(search.order, tuple(search.found))


def _summed(search: _Search) -> Iterator[tuple[fx.Node, fx.Node, int]]:
    """The operators that sum over units of the group, each with the operands that need a gate, and the axes.

    Of a sum of products, one factor at 0 is enough; a mean square is a sum of squares.
    """
    for consumer, marks in search.axes.marks.items():
        summed = marks.statistics if is_mean_square(consumer) else marks.silenced
        wanted = {id(x) for x in summed}
        uses = [
            (operand, axis)
            for operand in (consumer.all_input_nodes if wanted else ())
            for axis, label in enumerate(_labels(search, operand))
            if id(label) in wanted and _touches(search, label)
        ]
        for operand, axis in _to_gate(consumer, uses):
            if not _is_behind_mean_square(search, operand):
                yield consumer, operand, axis


def _to_gate(consumer: fx.Node, uses: list[tuple[fx.Node, int]]) -> list[tuple[fx.Node, int]]:
    """The operands whose gates together make up for the units of an operator that sums over them.

    Raises:
        UnplaceableError: no gate on an operand does.
    """
    computed = [use for use in uses if use[0].op != "get_attr"]
    if operator(consumer) in RECURRENT:
        if any(operand is not consumer.args[0] for operand, _ in computed):
            raise UnplaceableError(
                f"{consumer.name} computes its units from their own earlier values: a gate behind it leaves "
                "these as they are, so that a unit at 0 is not the same as none"
            )
        return computed
    if operator(consumer) in CONTRACTIONS or is_mean_square(consumer):
        return computed[:1]
    if len(computed) < len(uses):
        raise UnplaceableError(
            f"{consumer.name} holds them against a stored tensor, so that a unit at 0 is not the same as none"
        )
    return computed


def _is_behind_mean_square(search: _Search, node: fx.Node) -> bool:
    """Whether a value is the moved result of a norm that takes a mean square over units of the group.

    Behind a 0 in front of the norm there is 0.
    """
    while not is_mean_square(node):
        if not _moves(node) or len(node.all_input_nodes) != 1:
            return False
        node = node.all_input_nodes[0]
    return any(_touches(search, x) for x in search.axes.marks[node].statistics)


def _labels(search: _Search, node: fx.Node) -> tuple[object, ...]:
    labels = search.axes.nodes.get(node)
    return labels if isinstance(labels, tuple) else ()


def _touches(search: _Search, label: object) -> bool:
    return any(search.inside[c].any() for c in search.axes.final(label).columns)  # type: ignore[arg-type]


def _walk(search: _Search, node: fx.Node, axis: int, user: fx.Node) -> None:
    """Follows an operand back through nodes that only move numbers, up to where the units lie in order."""
    found = _arranged(search, _labels(search, node)[axis])
    if found and (search.order is None or np.array_equal(found[0], search.order)):
        search.order, tiled, span = found
        search.found[Place(node, axis, user, tiled, span)] = None
        return
    if leaf_of(search.program.module, node) is None and not _moves(node):
        raise UnplaceableError(
            f"at node {node.name} the units do not lie in order along an axis, and {node.target} "
            "is not an operator that only moves them"
        )
    search.moved[node] = None
    sources = 0
    for source in node.all_input_nodes:
        for i, label in enumerate(_labels(search, source)):
            if _touches(search, label):
                _walk(search, source, i, node)
                sources += 1
    if not sources:
        raise UnplaceableError(f"node {node.name} does not pass on the units of any operand")


def _moves(node: fx.Node) -> bool:
    """Whether a node only moves numbers; alpha dropout makes something else of 0."""
    return operator(node) in MOVERS - {"alpha_dropout"}


def _arranged(search: _Search, label: object) -> tuple[IntArray, bool, range] | None:
    """The units of the group in their order along an axis, whether they are tiled, and their positions.

    None where they do not lie in order: all their positions must be contiguous, and each unit must have one
    position, a run of positions, or every n-th position.
    """
    columns = [c for c in search.axes.final(label).columns if search.inside[c].any()]  # type: ignore[arg-type]
    if len(columns) != 1:
        return None
    (at,) = np.nonzero(search.inside[columns[0]])
    span = range(int(at[0]), int(at[-1]) + 1)
    if len(at) != len(span) or len(span) % search.count:
        return None
    own = columns[0][span.start : span.stop]
    for tiled, grid in (
        (False, own.reshape(search.count, -1).T),
        (True, own.reshape(-1, search.count)),
    ):
        order = np.asarray(grid[0])
        if (grid == order).all() and len(np.unique(order)) == search.count:
            return order, tiled, span
    return None


def _check_readers(search: _Search) -> None:
    """Checks that a value before a gate is read by the sums behind the gate only."""
    for node in search.moved:
        for user in node.users:
            if user not in search.moved and not _sums_here(search, user):
                raise UnplaceableError(f"node {user.name} also reads the units, from {node.name}")


def _sums_here(search: _Search, node: fx.Node) -> bool:
    marks = search.axes.marks.get(node)
    return marks is not None and any(
        id(label) in {id(x) for x in marks.silenced} and _touches(search, label)
        for operand in node.all_input_nodes
        for label in _labels(search, operand)
    )
