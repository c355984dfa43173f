"""Curves of a report: their data, and the pictures that are drawn of them."""

import json
import math

import pytest

from fxprune.errors import LoadError, OptionError
from fxprune.files.document import Document, Entry
from fxprune.report import Curves
from fxprune.report.curves import read_curves
from fxprune.report.html.curves import curves, thinned, ticks

GIVEN = Curves("Recovery", "epoch", "accuracy", {"a": [(0, 0.5), (1, 0.75)], "b": [(0, 0.25)]})


def test_json_restores_them() -> None:
    text = json.dumps(GIVEN.to_json())
    assert read_curves(Document("x", LoadError).parse(text)) == GIVEN


@pytest.mark.parametrize(
    "series", [{}, {"a": []}, {"a": [(0, math.nan)]}, {"a": [(math.inf, 0)]}, {"a": [(0, 1e308)]}]
)
def test_what_cannot_be_drawn_is_refused(series: dict[str, list[tuple[float, float]]]) -> None:
    with pytest.raises(OptionError, match="cannot be drawn"):
        Curves("a", "x", "y", series)


def test_data_without_a_point_is_refused() -> None:
    data = {**GIVEN.to_json(), "series": {"a": []}}
    with pytest.raises(LoadError, match="has no point"):
        read_curves(Entry(data, Document("x", LoadError)))


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (-3, 7e6), (1e-9, 2e-9), (5, 5), (0, 0), (-1e300, 1e300), (1, 1 + 1e-15)],
)
def test_ticks_span_the_range_and_are_few(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert found == sorted(set(found))
    assert 2 <= len(found) <= 8


def test_points_lie_where_their_values_say() -> None:
    drawn = curves([GIVEN]).body
    # y from 0.2 to 0.8 over 12 to 272 from below, x from 0 to 1 over 76 to 624
    assert 'd="M76.0 142.0L624.0 33.67" class="line"' in drawn
    assert "<title>a: 1, 0.75</title>" in drawn


def test_a_long_series_is_thinned_and_keeps_its_ends() -> None:
    points = [(float(i), 0.0) for i in range(10_000)]
    found = thinned(points)
    assert len(found) <= 401
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert "some points are left out" in curves([Curves("a", "x", "y", {"a": points})]).body
    assert thinned(points[:7]) == points[:7]
