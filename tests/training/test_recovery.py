"""A smaller network learns from the original, once or in rounds: what is compared, what stays, and what comes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax

import fxprune as fp
from fxprune.errors import BudgetError, OptionError, ScoreError
from fxprune.training import TrainingError
from fxprune.training.recovery.distance import divergence, squared
from fxprune.training.recovery.features import Watched, find_paths, in_common, kept_positions


def network() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()
    )
    model = nn.Sequential(body, nn.Linear(16, 4))
    return model.eval()


DATA = [torch.randn(32, 6, generator=torch.Generator().manual_seed(i)) for i in range(8)]
HELD = [torch.randn(64, 6, generator=torch.Generator().manual_seed(99))]


def apart(a: Any, b: Any) -> float:
    with torch.no_grad():
        return float(squared(a(HELD[0]), b(HELD[0])))


@pytest.fixture(scope="module")
def outcome() -> fp.Outcome:
    return fp.prune(network(), DATA[0], keep=0.3, data=DATA)


def test_a_program_recovers_and_nothing_else_changes(outcome: fp.Outcome, tmp_path: Path) -> None:
    program = outcome.program
    before = copy.deepcopy([program.tensors(), outcome.original.tensors()])
    state = torch.get_rng_state()
    found = fp.recover(
        program, outcome.original, DATA, 60, lr=1e-2, validation=HELD, progress=False
    )
    torch.testing.assert_close(
        [program.tensors(), outcome.original.tensors()], before, rtol=0, atol=0
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.network.training
    assert apart(found.network, outcome.original) < 0.5 * apart(program, outcome.original)
    assert found.history[-1].held is not None
    best = min(p.held for p in found.history if p.held is not None)
    assert best == pytest.approx(apart(found.network, outcome.original), rel=1e-4)
    assert "held-out distance" in str(found)
    found.plot(tmp_path / "course.png")
    assert (tmp_path / "course.png").stat().st_size > 1000
    assert fp.prune(found.network, keep=0.8).report.checks[0].ok


def test_a_model_of_ones_own_class_recovers() -> None:
    model = network()
    smaller = fp.write_back(model, fp.prune(model, DATA[0], keep=0.3).plan)
    found = fp.recover(smaller, model, DATA, 60, lr=1e-2, progress=False)
    assert type(found.network) is type(model)
    assert apart(found.network, model) < 0.5 * apart(smaller, model)


def test_the_same_seed_gives_the_same_network(outcome: fp.Outcome) -> None:
    a, b = (
        fp.recover(outcome.program, outcome.original, DATA, 5, progress=False, seed=3).network
        for _ in range(2)
    )
    torch.testing.assert_close(a.tensors(), b.tensors(), rtol=0, atol=0)


def test_it_ends_where_it_gets_no_better(outcome: fp.Outcome) -> None:
    found = fp.recover(
        outcome.program,
        outcome.original,
        DATA,
        40,
        lr=10.0,
        validation=HELD,
        patience=2,
        progress=False,
    )
    assert found.history[-1].step < 40
    assert apart(found.network, outcome.original) <= apart(outcome.program, outcome.original) + 1e-6


def test_distances_by_hand() -> None:
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    assert float(squared(b.mean().expand(5, 3), b)) == pytest.approx(1)
    assert float(squared(b, b)) == 0
    soft, wanted = (log_softmax(x / 2, 1) for x in (a, b))
    expected = kl_div(soft, wanted, reduction="batchmean", log_target=True) * 4
    torch.testing.assert_close(divergence(a, b, 2.0), expected)
    torch.testing.assert_close(divergence(a[None], b[None], 2.0), expected)


@pytest.mark.parametrize("as_program", [True, False])
def test_features_are_compared_at_the_positions_that_are_left(
    outcome: fp.Outcome, as_program: bool
) -> None:
    teacher = outcome.original
    student: Any = outcome.program
    if not as_program:
        student = fp.write_back(network(), outcome.plan)
    paths = find_paths(student, teacher, ["0.*", "0"])
    assert "0.3" in paths
    own, theirs = (Watched(n, paths).run(lambda m: m(DATA[0]))[1] for n in (student, teacher))
    pairs = in_common(own, theirs, kept_positions(teacher, outcome.plan, paths))
    assert pairs.keys() == set(paths)
    silenced = teacher.copy()
    for name, cut in outcome.plan.kept.items():
        for axis, positions in cut.items():
            gone = torch.ones(silenced.tensors()[name].shape[axis], dtype=torch.bool)
            gone[torch.as_tensor(positions)] = False
            if axis == 1:  # what reads a removed unit
                with torch.no_grad():
                    silenced.tensors()[name][:, gone] = 0
    _, wanted = Watched(silenced, paths).run(lambda m: m(DATA[0]))
    for path, (found, _) in pairs.items():
        kept = kept_positions(teacher, outcome.plan, paths)[path]
        torch.testing.assert_close(found, wanted[path][:, torch.as_tensor(kept[1])])
    assert not in_common(own, theirs, {})


def test_features_and_labels_take_part(outcome: fp.Outcome) -> None:
    pairs = [(x, outcome.original(x).argmax(1)) for x in DATA]
    options: dict[str, Any] = {"features": ["0.*"], "plan": outcome.plan, "task_weight": 0.1}
    found = fp.recover(
        outcome.program,
        outcome.original,
        pairs,
        60,
        lr=1e-2,
        progress=False,
        **options,
    )
    assert apart(found.network, outcome.original) < apart(outcome.program, outcome.original)


Arguments = Callable[[fp.Outcome], dict[str, Any]]
REFUSED: dict[str, tuple[Arguments, type[Exception], str]] = {
    "no steps": (lambda o: {"steps": 0}, OptionError, "steps is 0"),
    "a rate of 0": (lambda o: {"lr": 0.0}, OptionError, "lr is 0"),
    "a distance": (lambda o: {"distance": "near"}, OptionError, "no distance 'near'"),
    "a temperature": (lambda o: {"temperature": 0.0}, OptionError, "temperature is 0"),
    "a module": (lambda o: {"features": ["head"]}, OptionError, "is called 'head'"),
    "a plan of a model": (
        lambda o: {"features": ["0.3"], "plan": o.plan, "teacher": network()},
        OptionError,
        "the teacher is a model",
    ),
    "another teacher": (
        lambda o: {"teacher": nn.Linear(6, 3)},
        TrainingError,
        "not those of the teacher",
    ),
    "an outcome": (lambda o: {"network": o}, OptionError, "a Outcome cannot be trained"),
    "data": (lambda o: {"data": []}, OptionError, "no batches"),
    "labels": (lambda o: {"task_weight": 1.0}, ScoreError, "nothing says what the loss"),
    "a rate too high": (
        lambda o: {"distance": lambda a, b: a.sum() * torch.inf},
        TrainingError,
        "the loss is",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done(case: str, outcome: fp.Outcome) -> None:
    make, kind, says = REFUSED[case]
    options = {"network": outcome.program, "teacher": outcome.original, "data": DATA, "steps": 2}
    with pytest.raises(kind, match=says):
        fp.recover(**{**options, "progress": False, **make(outcome)})


def test_a_network_without_parameters_that_train(outcome: fp.Outcome) -> None:
    program = outcome.program.copy()
    program.module.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter"):
        fp.recover(program, outcome.original, DATA, 2, progress=False)


def test_rounds_reach_the_share_and_give_the_class_back() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = fp.prune_iteratively(
        model, DATA, 0.3, 3, steps=150, lr=1e-2, validation=HELD, progress=False
    )
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert found.rounds[-1].kept == pytest.approx(0.3, abs=0.04)
    assert [r.kept for r in found.rounds] == sorted((r.kept for r in found.rounds), reverse=True)
    assert all(r.after <= r.before for r in found.rounds if r.before and r.after)
    assert type(found.model) is type(model)
    torch.testing.assert_close(found.model(HELD[0]), found.program(HELD[0]))
    once = fp.prune(model, DATA[0], keep=0.3, data=DATA).program
    assert apart(found.program, model) < 0.7 * apart(once, model)
    assert "after the steps" in str(found)


def test_by_the_share_of_units_and_with_a_criterion() -> None:
    found = fp.prune_iteratively(
        network(), DATA, 0.5, 2, steps=4, metric="units", importance="magnitude", progress=False
    )
    assert found.rounds[-1].kept == pytest.approx(0.5, abs=0.03)
    assert found.rounds[0].before is None


def test_a_round_that_can_remove_no_whole_unit_waits() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    data = [torch.randn(8, 4)]
    found = fp.prune_iteratively(model, data, 0.74, 4, steps=4, progress=False)
    assert found.rounds[0].kept == 1
    assert found.rounds[-1].kept == pytest.approx(0.75)
    little = fp.prune_iteratively(model, data, 0.95, 2, steps=4, progress=False)
    once = fp.prune(model, data[0], keep=0.95)
    assert little.comparison.ratios == fp.compare(once.original, once.program).ratios
    with pytest.raises(BudgetError):
        fp.prune_iteratively(model, data, 0.5, 2, steps=4, at_least=4, progress=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": 1.0}, "keep is 1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"steps": 1}, "steps is 1"),
        ({"ignore": ["nowhere"]}, "nowhere"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        fp.prune_iteratively(network(), DATA, **{"steps": 6, "progress": False, **options})
