from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.algebra.label import Label, concat, frozen, merge
from fxprune.algebra.reshape import runs

lengths = st.integers(1, 6)


def label(*columns: list[int]) -> Label:
    return Label(len(columns[0]), tuple(np.array(c) for c in columns))


def columns(x: Label) -> list[list[int]]:
    return [c.tolist() for c in x.columns]


def test_take() -> None:
    assert columns(label([1, 2, 3], [4, 5, 6]).take(slice(1, None))) == [[2, 3], [5, 6]]
    assert len(Label(5).take(slice(1, 4))) == 3


def test_tile_and_repeat() -> None:
    assert columns(label([1, 2]).tile(2)) == [[1, 2, 1, 2]]
    assert columns(label([1, 2]).repeat(2)) == [[1, 1, 2, 2]]
    assert (len(Label(3).tile(2)), len(Label(3).repeat(2))) == (6, 6)


def test_merge_repeats_the_outer_and_tiles_the_inner() -> None:
    assert columns(merge(label([1, 2]), label([3, 4, 5]))) == [
        [1, 1, 1, 2, 2, 2],
        [3, 4, 5, 3, 4, 5],
    ]
    assert columns(merge(Label(2), label([3, 4]))) == [[3, 4, 3, 4]]
    assert columns(merge(Label(1), label([3, 4]), Label(1))) == [[3, 4]]
    assert len(merge(Label(1), Label(1))) == 1


def test_merge_hands_an_axis_on_that_stands_alone() -> None:
    alone = label([1, 2])
    assert merge(Label(1), alone, Label(1)) is alone
    one = label([5])
    assert columns(merge(Label(1), one)) == [[5]]


def test_concat_fills_with_the_neutral_unit() -> None:
    assert columns(concat([label([1], [2]), label([3, 4])])) == [[1, 3, 4], [2, 0, 0]]
    assert len(concat(frozen([2, 3]))) == 5


@given(st.lists(lengths, min_size=1, max_size=5), st.data())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_runs_have_equal_products_and_cover_both_shapes(
    old: list[int], data: st.DataObject
) -> None:
    new = data.draw(st.permutations(old))
    found = list(runs(old, new))
    assert all(np.prod(old[s]) == np.prod(new[t]) for s, t in found)
    assert [i for s, _ in found for i in range(s.start, s.stop)] == list(range(len(old)))
    assert [i for _, t in found for i in range(t.start, t.stop)] == list(range(len(new)))
