"""Shares of units that single groups keep, by globs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.plan.limits import Limits
from fxprune.plan.shares import find_shares


def kept(program: Program, keep: dict[str, float], **options: Any) -> dict[str, int]:
    outcome = fp.prune(program, keep=keep, **options)
    return {g.name: g.kept for g in outcome.report.groups}


def test_each_group_keeps_the_share_of_its_module(program: Program) -> None:
    found = kept(program, {"two.0": 0.25, "stem": 0.75, "one.0": 0.5})
    assert found == {"stem.0.weight:0": 12, "one.0.weight:0": 12, "two.0.weight:0": 10}


def test_the_first_glob_that_matches_decides(program: Program) -> None:
    assert kept(program, {"one.0": 0.25, "*": 0.5})["one.0.weight:0"] == 6
    found = fp.prune(program, keep={"*": 0.5, "one.0": 0.25})
    assert [g.kept for g in found.report.groups] == [8, 12, 20]
    remark = next(r for r in found.remarks if r.code == "choose.glob-unused")
    assert remark.where == "keep['one.0']"


def test_groups_that_no_glob_matches_stay_whole(program: Program) -> None:
    found = fp.prune(program, keep={"one.0.weight:0": 0.5})
    assert [g.kept for g in found.report.groups] == [16, 12, 40]
    left = {r.where: r.why for r in found.remarks if r.code == "choose.left"}
    assert left == dict.fromkeys(
        ("stem.0.weight:0", "two.0.weight:0"), "no glob of keep matches it"
    )


def test_one_share_for_all_is_that_of_units(program: Program) -> None:
    one = fp.prune(program, keep=0.5, metric="units")
    assert fp.prune(program, keep={"*": 0.5}).plan == one.plan


def test_multiples_and_least_numbers_hold(program: Program) -> None:
    found = kept(program, {"*": 0.4}, multiple_of=4, at_least=8)
    assert found == {"stem.0.weight:0": 8, "one.0.weight:0": 12, "two.0.weight:0": 16}


def test_what_is_ignored_stays(program: Program) -> None:
    assert kept(program, {"*": 0.5}, ignore=("two",)) == {
        "stem.0.weight:0": 16,
        "one.0.weight:0": 12,
        "two.0.weight:0": 40,
    }


def test_consumers_are_not_meant(program: Program) -> None:
    """`head` reads the channels of the stem, and its own outputs are those of the network."""
    with pytest.raises(OptionError, match="matches no group"):
        fp.prune(program, keep={"head": 0.5})


def test_a_glob_that_matches_nothing_names_the_nearest(program: Program) -> None:
    with pytest.raises(OptionError, match=r"did you mean 'stem"):
        fp.prune(program, keep={"stam": 0.5})


@pytest.mark.parametrize("keep", [{}, {"*": 0}, {"*": 1.5}, {"*": "half"}, {3: 0.5}])
def test_a_wrong_share_is_refused(program: Program, keep: Any) -> None:
    with pytest.raises(OptionError, match="keep"):
        fp.prune(program, keep=keep)


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_another_metric_is_refused(program: Program, metric: Any) -> None:
    with pytest.raises(OptionError, match="share for each glob"):
        fp.prune(program, keep={"*": 0.5}, metric=metric)


def test_units_may_be_said(program: Program) -> None:
    assert kept(program, {"*": 0.5}, metric="units") == kept(program, {"*": 0.5})


class Halves(nn.Module):
    """Two halves of one layer, which a chunk makes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.a, self.b = nn.Linear(6, 16), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.up(x).chunk(2, -1)
        return self.a(a) + self.b(b)


def test_the_plan_fits_the_class() -> None:
    model = Halves().eval()
    outcome = fp.prune(model, torch.randn(2, 6), keep={"up": 0.5}, fits=model)
    assert outcome.written is not None
    assert outcome.written.up.weight.shape == (8, 6)  # type: ignore[union-attr]


def test_tied_groups_keep_the_largest_share() -> None:
    program = fp.capture(Halves().eval(), torch.randn(2, 6))
    groups = fp.groups(program)
    first, second = (g.name for g in groups)
    limits = Limits(ties=((first, second),))
    found = find_shares(groups, {first: 0.25, second: 0.5}, [], [], limits)
    assert found.of == {first: 0.5, second: 0.5}
    assert [r.code for r in found.remarks] == ["choose.shares-tied"]
    assert not find_shares(groups, {"*": 0.5}, [], [], limits).remarks
