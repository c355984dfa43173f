"""Tests of the names of passes: the text name, the file and the class are one name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, distribution

import pytest

POINTS = [
    point
    for point in distribution("fxprune").entry_points.select(group="fxprune.passes")
    if point.name != "fx"  # of the core, named after the library whose passes it runs
]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_a_pass_is_in_the_file_of_its_name(point: EntryPoint) -> None:
    words = point.name.split("-")
    assert point.module.startswith("fxprune_passes.")
    assert point.module.rpartition(".")[2] == "_".join(words)
    assert point.attr == "".join(word.capitalize() for word in words)
    assert point.load().name == point.name
