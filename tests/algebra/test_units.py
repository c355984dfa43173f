from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.algebra.label import Label, concat, merge
from fxprune.algebra.units import Units, distinct_rows

quick = settings(derandomize=True, max_examples=60, deadline=None)


def made() -> Units:
    u = Units()
    u.enter("node", ())
    return u


def axis(u: Units, n: int) -> Label:
    return u.fresh([n])[0]


def is_frozen(u: Units, label: Label) -> bool:
    u.forest.resolve()
    return not any(u.forest.find(c).any() for c in label.columns)


def same(u: Units, a: Label, b: Label) -> bool:
    u.forest.resolve()
    return bool((u.forest.find(a.columns[0]) == u.forest.find(b.columns[0])).all())


def test_unify_joins_position_by_position() -> None:
    u = made()
    a, b = axis(u, 3), axis(u, 3)
    assert u.unify(a, b) is a
    assert same(u, a, b)
    assert len(set(u.forest.find(a.columns[0]))) == 3


def test_unions_are_transitive_in_any_order() -> None:
    u = made()
    a, b, c, d = (axis(u, 2) for _ in range(4))
    for x, y in ((c, d), (b, c), (a, b)):
        u.unify(x, y)
    assert same(u, a, d)
    assert (u.forest.find(d.columns[0]) == a.columns[0]).all()


def test_a_unit_joined_with_two_others_in_one_call() -> None:
    u = made()
    a, b, c = (int(x.columns[0][0]) for x in (axis(u, 1), axis(u, 1), axis(u, 1)))
    assert u.forest.union(np.array([a, b]), np.array([c, c]))
    assert len(set(u.forest.find(np.array([a, b, c])))) == 1
    assert not u.forest.union(np.array([a]), np.array([c]))


def test_thousands_of_units() -> None:
    u = made()
    parts = [axis(u, 700) for _ in range(5)]
    u.unify(parts[0], parts[4])
    assert same(u, parts[0], parts[4])
    assert len({int(n) for p in parts for n in u.forest.find(p.columns[0])}) == 4 * 700


def test_a_frozen_axis_freezes_the_other() -> None:
    u = made()
    a = axis(u, 3)
    u.unify(a, Label(3))
    assert is_frozen(u, a)


def test_axes_of_different_lengths_freeze() -> None:
    u = made()
    a, b = axis(u, 3), axis(u, 4)
    u.unify(a, b)
    assert is_frozen(u, a)
    assert is_frozen(u, b)


def test_a_length_of_1_broadcasts_and_couples_nothing() -> None:
    u = made()
    a, one = axis(u, 3), axis(u, 1)
    assert u.broadcast((a,), (one,), 2.0) == (a,)
    assert is_frozen(u, one)
    assert not is_frozen(u, a)


@quick
@given(st.integers(2, 5), st.integers(2, 5))
def test_split_undoes_merge(a: int, b: int) -> None:
    u = made()
    outer, inner = axis(u, a), axis(u, b)
    found = u.split(merge(outer, inner), a, b)
    for x, y in zip(found, (outer, inner), strict=True):
        assert len(x) == 1 or same(u, x, y)


@quick
@given(st.integers(2, 5), st.integers(2, 5))
def test_split_of_a_plain_axis_removes_whole_rows_and_columns(a: int, b: int) -> None:
    u = made()
    flat = axis(u, a * b)
    row, column = u.split(flat, a, -1)
    units, tuples = u.forest.resolve()
    assert len(units) == a * b
    place = {int(n): i for i, n in enumerate(units)}
    at = [place[int(n)] for n in flat.columns[0]]
    assert tuples[:, at].T.tolist() == [[r, c] for r in row.columns[0] for c in column.columns[0]]
    assert u.split(flat, a, -1)[0].columns[0] is row.columns[0]


@quick
@given(st.integers(2, 5), st.integers(2, 5), st.integers(2, 5))
def test_a_repeated_axis_is_split_once(times: int, a: int, b: int) -> None:
    u = made()
    flat = axis(u, a * b)
    units = u.forest.size
    row, column = u.split(flat.tile(times), times * a, b)
    assert u.forest.size == units + a + b
    assert (row.columns[0] == np.tile(np.arange(units, units + a), times)).all()
    once = u.split(flat, a, b)
    u.forest.resolve()
    assert (u.forest.find(row.columns[0][:a]) == u.forest.find(once[0].columns[0])).all()
    assert (u.forest.find(column.columns[0]) == u.forest.find(once[1].columns[0])).all()


def test_equal_columns_are_split_once() -> None:
    u = made()
    flat = axis(u, 6)
    units = u.forest.size
    row, column = u.split(flat.repeat(4), 3, 8)
    assert row.columns[0].tolist() == [units, units + 1, units + 2]
    assert column.columns[0].tolist() == [units + 3] * 4 + [units + 4] * 4


def test_repeated_rows_with_a_frozen_position_stay() -> None:
    u = made()
    flat = axis(u, 6)
    u.freeze(flat.take(slice(0, 1)))
    row, column = u.split(flat.tile(2), 4, 3)
    assert (row.columns[0] == 0).tolist() == [True, False, True, False]
    assert (column.columns[0] == 0).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("grid", "first", "place"),
    [
        ([[5, 6], [3, 4], [5, 6], [3, 4]], [0, 1], [0, 1, 0, 1]),
        ([[3, 4], [3, 4], [1, 2]], [0, 2], [0, 0, 1]),
        ([[3, 4], [3, 5], [3, 4]], [0, 1, 2], [0, 1, 2]),
        ([[1, 2], [3, 4]], [0, 1], [0, 1]),
    ],
)
def test_distinct_rows(grid: list[list[int]], first: list[int], place: list[int]) -> None:
    found = distinct_rows(np.array(grid))
    assert [x.tolist() for x in found] == [first, place]


def test_split_keeps_a_row_with_a_frozen_position() -> None:
    u = made()
    flat = axis(u, 6)
    u.freeze(flat.take(slice(0, 1)))
    row, column = u.split(flat, 2, 3)
    u.forest.resolve()
    assert (u.forest.find(row.columns[0]) == 0).tolist() == [True, False]
    assert (u.forest.find(column.columns[0]) == 0).tolist() == [True, False, False]


def test_two_views_of_one_axis_agree_where_they_are_alike() -> None:
    u = made()
    a, b = axis(u, 6), axis(u, 6)
    first, second = u.split(a, 2, 3), u.split(b, 2, 3)
    u.unify(a, b)
    assert all(same(u, x, y) for x, y in zip(first, second, strict=True))


def test_a_view_of_another_rectangle_becomes_what_both_allow() -> None:
    u = made()
    a = axis(u, 12)
    u.split(a, 2, 6)
    u.split(a, 3, 4)
    units, tuples = u.forest.resolve()
    assert not set(units.tolist()) & set(tuples.ravel().tolist())


def test_a_loop_of_aliases_becomes_one_unit_and_freezes_the_rest() -> None:
    u = made()
    a, b, h, k = (axis(u, 1).columns[0] for _ in range(4))
    u.forest.define(a, np.stack([h, b]))
    u.forest.define(b, np.stack([k, a]))
    u.forest.resolve()
    assert u.forest.find(a) == u.forest.find(b) != 0
    assert u.forest.find(h) == u.forest.find(k) == 0


def test_an_alias_of_a_frozen_unit_freezes_its_parts() -> None:
    u = made()
    a, h, k = (axis(u, 1) for _ in range(3))
    u.forest.define(a.columns[0], np.stack([h.columns[0], k.columns[0]]))
    u.freeze(a)
    assert is_frozen(u, h)
    assert is_frozen(u, k)


def test_one_column_follows_several() -> None:
    u = made()
    a, b, flat = axis(u, 2), axis(u, 3), axis(u, 6)
    assert len(u.unify(flat, merge(a, b)).columns) == 2
    units, _ = u.forest.resolve()
    assert sorted(units.tolist()) == flat.columns[0].tolist()


@quick
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_reshape_there_and_back(sizes: list[int]) -> None:
    u = made()
    axes = u.fresh(sizes)
    flat = u.reshape(axes, [int(np.prod(sizes))])
    back = u.reshape(flat, sizes)
    for x, y in zip(axes, back, strict=True):
        assert len(x) == len(y)
        assert len(x) == 1 or same(u, x, y)


def test_merged_columns_survive_a_cat() -> None:
    u = made()
    a, b, c = axis(u, 2), axis(u, 2), axis(u, 3)
    joined = concat([merge(a, b), c])
    assert u.reshape((joined,), [7])[0] is joined


@pytest.mark.parametrize("keepdim", [False, True])
def test_reduce_marks_what_it_sums(keepdim: bool) -> None:
    u = made()
    axes = u.fresh([2, 3])
    out = u.reduce(axes, [-1], keepdim)
    assert u.marks["node"].silenced == [axes[1]]
    assert [len(x) for x in out] == ([2, 1] if keepdim else [2])


def test_spell_pin_and_bound_only_speak_of_axes_that_may_change() -> None:
    u = made()
    u.spell("size", Label(3))
    u.pin("scale", 0.5, Label(3))
    u.bound("start", 1, Label(3))
    assert "node" not in u.marks
    a = axis(u, 3)
    u.bound("start", 1, a)
    part, whole = u.marks["node"].bounds["start"]
    assert (len(part), whole) == (1, a)


def test_a_node_says_what_its_call_is_like() -> None:
    u = Units()
    assert u.out == ()
    assert not u.symbolic(0)
    assert not u.argument("size")
    u.enter("view", [3, 4], symbolic=(1,), arguments=("size",))
    assert u.out == [3, 4]
    assert [u.symbolic(0), u.symbolic(1)] == [False, True]
    assert [u.argument("size"), u.argument("dim")] == [True, False]
    u.enter("relu", [3, 4])
    assert not u.symbolic(1)
    assert not u.argument("size")


def test_every_step_is_kept_with_the_node_that_asked_for_it() -> None:
    u = Units()
    a, b, flat = axis(u, 3), axis(u, 3), axis(u, 6)
    u.freeze(a, why="sorted")
    u.enter("add", ())
    u.unify(a, b)
    u.enter("view", ())
    outer, inner = u.split(flat, 2, 3)
    first, second, third = u.couplings
    assert (first.node, first.a, first.b, first.why) == (None, a, None, "sorted")
    assert (second.node, second.a, second.b) == ("add", a, b)
    assert (third.node, third.why) == ("view", "the axis is viewed as 2 x 3")
    assert third.b is not None
    assert third.a.columns[0].tolist() == flat.columns[0].tolist()
    assert third.b.columns[0].tolist() == outer.repeat(3).columns[0].tolist()
    assert third.b.columns[1].tolist() == inner.tile(2).columns[0].tolist()


def test_an_axis_and_itself_are_no_step() -> None:
    u = made()
    a, b = axis(u, 2), axis(u, 3)
    both = merge(a, b)
    assert u.unify(a, a) is a
    assert u.unify(both, Label(6, both.columns)) is both
    assert u.unify(still := Label(4), Label(4)) is still
    assert not u.couplings


def test_positions_named_by_two_and_by_three_units_freeze() -> None:
    u = made()
    two, three = merge(axis(u, 2), axis(u, 4)), merge(axis(u, 2), axis(u, 2), axis(u, 2))
    u.unify(two, three)
    assert is_frozen(u, two)
    assert is_frozen(u, three)


@pytest.mark.parametrize("swap", [False, True])
def test_a_frozen_position_freezes_the_units_of_the_other_side(swap: bool) -> None:
    u = made()
    pair, other = ([x.columns[0] for x in u.fresh([2, 2])] for _ in range(2))
    held = Label(2, tuple(np.where([True, False], 0, c) for c in pair))
    free = Label(2, tuple(other))
    u.unify(*((free, held) if swap else (held, free)))
    assert [(u.forest.find(c) == 0).tolist() for c in free.columns] == [[True, False]] * 2
    assert [u.forest.find(c)[1] for c in free.columns] == [u.forest.find(c)[1] for c in pair]


@pytest.mark.parametrize("sizes", [(1, 6), (6, 1), (-1, 6), (6, -1)])
def test_a_factor_of_1_needs_no_split(sizes: tuple[int, int]) -> None:
    u = made()
    tied = axis(u, 1).repeat(6)
    found = u.split(tied, *sizes)
    one, whole = sorted(found, key=len)
    assert whole is tied
    assert (len(one), one.columns) == (1, ())


def test_a_view_hands_on_what_it_leaves_alone() -> None:
    u = made()
    axes = u.fresh([1, 3, 4])
    out = u.reshape(axes, [1, 3, 2, 2])
    assert out[:2] == axes[:2]
    assert not is_frozen(u, axes[0])
