from __future__ import annotations

import numpy as np
import pytest

import fxprune as fp
from fxprune.api import solved
from fxprune.cost import cost_of
from fxprune.errors import BudgetError, OptionError, PlanError
from fxprune.graph.program import Program
from fxprune.plan.choose import Target, choose, find_candidates
from fxprune.plan.limits import Limits


def share(outcome: fp.Outcome, metric: str) -> float:
    axes = solved(outcome.original)
    cost = cost_of(outcome.original, axes, metric)  # type: ignore[arg-type]
    gone = np.zeros(axes.n_units, bool)
    before = cost(gone)
    gone[outcome.plan.removed] = True
    return cost(gone) / before


@pytest.mark.parametrize("metric", ["macs", "params"])
@pytest.mark.parametrize("scope", ["global", "group"])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_budget_is_met_within_one_percent(
    program: Program, metric: str, scope: str, keep: float
) -> None:
    outcome = fp.prune(program, keep=keep, metric=metric, scope=scope, verify=False)  # type: ignore[arg-type]
    assert 0.96 * keep <= share(outcome, metric) <= keep


def test_budget_agrees_with_the_rewritten_network(program: Program) -> None:
    outcome = fp.prune(program, keep=0.5, metric="params")
    small = sum(p.numel() for p in outcome.program.module.parameters())
    assert small == share(outcome, "params") * sum(p.numel() for p in program.module.parameters())


def test_units_keeps_that_share_of_each_group(program: Program) -> None:
    outcome = fp.prune(program, keep=0.75, metric="units")
    assert [g.kept for g in outcome.report.groups] == [12, 18, 30]


def test_final_sizes_are_multiples(program: Program) -> None:
    outcome = fp.prune(program, keep=0.6, multiple_of=4)
    sizes = {len(kept) for cut in outcome.plan.kept.values() for kept in cut.values()}
    assert sizes
    assert all(n % 4 == 0 for n in sizes)


def test_ignored_modules_keep_their_outputs(program: Program) -> None:
    outcome = fp.prune(program, keep=0.8, ignore=("stem.*", "two"))
    assert set(outcome.plan.kept) == {"one.0.weight", "one.0.bias", "one.2.weight"}
    assert any(r.code == "choose.left" and "ignored" in r.why for r in outcome.remarks)


def test_at_least_holds_for_each_group(program: Program) -> None:
    outcome = fp.prune(program, keep=0.35, at_least=8, importance="random")
    assert min(g.kept for g in outcome.report.groups) >= 8


def test_unreachable_budget_says_how_far_it_gets(program: Program) -> None:
    with pytest.raises(BudgetError, match=r"0\.\d+ is left"):
        fp.prune(program, keep=0.001)


def test_empty_effect_lists_each_candidate(program: Program) -> None:
    with pytest.raises(BudgetError) as error:
        fp.prune(program, keep=0.9, ignore=("*",))
    assert "one.0.weight is ignored" in str(error.value)
    assert "head.weight:0" in str(error.value)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"keep": 0}, "0 < keep"),
        ({"keep": 1.2}, "0 < keep"),
        ({"keep": float("nan")}, "0 < keep"),
        ({"metric": "flops"}, "macs"),
        ({"scope": "local"}, "global"),
        ({"importance": "magnitud"}, "did you mean 'magnitude'"),
        ({"ignore": ("heat",)}, "did you mean 'head'"),
        ({"multiple_of": 0}, "at least 1"),
    ],
)
def test_wrong_options_name_the_right_ones(
    program: Program, options: dict[str, object], hint: str
) -> None:
    with pytest.raises(OptionError, match=r"keep|metric|scope|criterion|ignore|multiple") as error:
        fp.prune(program, **options)  # type: ignore[arg-type]
    assert hint in str(error.value)


def test_no_axis_is_emptied(program: Program) -> None:
    group = fp.groups(program)[0]
    with pytest.raises(PlanError, match="removes every position"):
        fp.plan(program, group.units)


def test_the_cause_of_a_refusal_is_typed(program: Program) -> None:
    axes, found = solved(program), fp.groups(program)
    scores = np.ones(axes.n_units)
    scores[found[0].units] = np.nan
    refused = find_candidates(axes, found, scores, Target(at_least=40), {"one.0.weight"}).refused
    assert {r.cause for r in refused.values()} == {"ignored", "unscored", "small"}


def test_tied_groups_lose_equal_shares(program: Program) -> None:
    axes, found = solved(program), fp.groups(program)
    scores = np.random.default_rng(0).random(axes.n_units)
    a, b, c = found[:3]
    target = Target(keep=0.5)
    limits = Limits({}, ((a.name, c.name),), {b.name: 4})
    candidates = find_candidates(axes, found, scores, target, (), limits)
    assert not candidates.refused
    gone = np.zeros(axes.n_units, bool)
    gone[choose(axes, candidates, scores, target, cost_of(program, axes, "macs"))] = True
    left = [int((~gone[g.units]).sum()) for g in (a, b, c)]
    assert left[0] / len(a) == left[2] / len(c) < 1
    assert left[1] % 4 == 0
    worst = a.units[np.argsort(scores[a.units])][: len(a) - left[0]]
    assert gone[worst].all()


def test_with_a_group_that_stays_whole_stay_those_tied_to_it(program: Program) -> None:
    axes, found = solved(program), fp.groups(program)
    limits = Limits({found[0].name: "it must"}, ((found[0].name, found[1].name),))
    scores = np.ones(axes.n_units)
    refused = find_candidates(axes, found, scores, Target(), (), limits).refused
    assert refused[found[0].name].why == "it must"
    assert found[0].name in refused[found[1].name].why
    assert {r.cause for r in refused.values()} == {"limited"}
