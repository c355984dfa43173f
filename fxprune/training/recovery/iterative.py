"""Prunes in rounds, with a recovery behind each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.optim import AdamW

from fxprune.analysis.cache import solved
from fxprune.analysis.group import find_groups
from fxprune.calibration import Calibration
from fxprune.cost import Metric
from fxprune.errors import BudgetError, OptionError
from fxprune.graph.program import Program
from fxprune.importance import Importance, importance_of, score_remarks
from fxprune.latency import LatencyChooser, LatencyTable
from fxprune.plan import Plan
from fxprune.plan.choose import Target
from fxprune.plan.decide import decide
from fxprune.plan.parts import equal_parts
from fxprune.process.random_state import random_state_kept
from fxprune.process.state import plain_modes
from fxprune.remark import Remark
from fxprune.report import Comparison, Curves, compare
from fxprune.shrink import apply_plan
from fxprune.training.recovery.distance import Distance, distance_named
from fxprune.training.recovery.drawn import curves_of
from fxprune.training.recovery.loop import Course, Outputs, Point
from fxprune.training.recovery.recover import MEASUREMENTS, copy_of, make_lesson, trained
from fxprune.training.shrinker import Change, Shrinker
from fxprune.training.smaller.own_class import into_own_class


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        kept: the share of the metric that is left of the original.
        before: the mean distance from the teacher on the validation data before the steps; None without such data.
        after: the same behind the steps.
    """

    kept: float
    before: float | None
    after: float | None


@dataclass(frozen=True, eq=False)
class Iterated:
    """A network that was pruned in rounds; prints as text.

    Attributes:
        program: the network, in eval mode. Every removal was verified.
        model: the same in the user's own class, where its forward can compute it; else None, and a remark says why.
        rounds: what each round came to.
        history: the measurements of all steps.
        comparison: parameters, MACs and bytes before and after, module by module.
        remarks: what was approximated or could not be done.
    """

    program: Program
    model: nn.Module | None
    rounds: tuple[Round, ...]
    history: tuple[Point, ...] = field(repr=False)
    comparison: Comparison = field(repr=False)
    remarks: tuple[Remark, ...]

    def __str__(self) -> str:
        rows = [[i + 1, f"{r.kept:.1%}", r.before, r.after] for i, r in enumerate(self.rounds)]
        names = ["round", "left", "distance", "after the steps"]
        table = tabulate(rows, names, floatfmt=".4g", missingval="")
        return "\n\n".join([str(self.comparison), table, *map(str, self.remarks)])

    def curves(self) -> tuple[Curves, ...]:
        """What was measured, for a report: over the steps, and of each round against what it left."""
        series = {
            name: [(r.kept, x) for r in self.rounds if (x := getattr(r, part)) is not None]
            for name, part in (("before the steps", "before"), ("after the steps", "after"))
        }
        if not all(series.values()):
            return curves_of(self.history)
        x, y = "share that is kept", "held-out distance"
        return (*curves_of(self.history), Curves("Rounds of pruning", x, y, series))


@plain_modes()
@random_state_kept()
def prune_iteratively(
    model: nn.Module,
    data: Calibration | Iterable[Any],
    keep: float = 0.5,
    rounds: int = 3,
    *,
    steps: int,
    metric: Metric = "macs",
    importance: str | Importance | None = None,
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    ignore: Iterable[str] = (),
    multiple_of: int = 1,
    at_least: int = 1,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    distance: Distance | Outputs = "squared",
    temperature: float = 2.0,
    task_weight: float = 0.0,
    validation: Calibration | Iterable[Any] | None = None,
    progress: bool = True,
    seed: int = 0,
    latencies: LatencyTable | None = None,
) -> Iterated:
    """Removes units in rounds until `keep` of a metric is left; in each the network learns from the original again.

    Every round keeps the same share of what the one before left, keep^(1/rounds), and scores units anew: what recovers
    well shows only then. A `Shrinker` carries the state of the optimizer over; the rate rises and falls once over all
    rounds (see `recover`). The model stays as it is.

    Args:
        model: the network.
        data: batches of what the network is for, or an `fp.Calibration`; scores and steps read them.
        keep: the share that stays, above 0 and below 1.
        rounds: 1 or more.
        steps: of the optimizer, over all rounds.
        metric: macs, params, latency (see `prune`), or units (that share of each group).
        importance: a criterion by name, or an `fp.Importance`; None: the best for this data.
        args: example inputs; None: the first batch.
        kwargs: example keyword inputs.
        ignore: globs of module paths whose own outputs stay as they are.
        multiple_of: lengths of shrunk axes are multiples of this.
        at_least: units that every group keeps.
        lr: the highest rate of AdamW.
        weight_decay: of AdamW.
        distance: see `recover`.
        temperature: see `recover`.
        task_weight: of the loss of the data, beside the distance from the original.
        validation: like `data`; the distance is measured on it around the steps of each round.
        progress: whether to show bars on stderr.
        seed: of random choices.
        latencies: for the metric latency, where measured times are kept. None: `fp.LatencyTable()`.

    Raises:
        OptionError, TrainingError, CaptureError, ScoreError, BudgetError, VerifyError: the model has not changed.
    """
    for name, value, good in (
        ("keep", keep, 0 < keep < 1),
        ("rounds", rounds, rounds >= 1),
        ("steps", steps, steps >= rounds),
    ):
        if not good:
            raise OptionError(
                f"{name} is {value}", where=name, do="see the documentation of fp.prune_iteratively"
            )
    torch.manual_seed(seed)
    calibration = Calibration.of(data)
    how = importance_of(importance, calibration)
    network = copy_of(model)
    optimizer = AdamW(trained(network), lr, weight_decay=weight_decay)
    if args is None and kwargs is None:
        args, kwargs = next(calibration.calls())
    shrinker = Shrinker(network, optimizer, args=args, kwargs=kwargs)
    table = latencies or LatencyTable() if metric == "latency" else None
    start = shrinker.program.copy()
    lesson = make_lesson(
        shrinker.program,
        start,
        calibration,
        validation,
        distance if callable(distance) else distance_named(distance, temperature),
        task_weight=task_weight,
    )
    every = max(1, steps // rounds // MEASUREMENTS)
    course = Course(lesson, optimizer, steps, 0.1, every, None, 1.0, progress)
    changes, done = list[Change](), list[Round]()
    remarks: list[Remark] = [*start.remarks, *score_remarks(start, how)]
    for number in range(1, rounds + 1):
        now, wish = shrinker.program.eval(), keep ** (number / rounds)
        here = _left(start, now, metric, table)
        if wish < here:
            target = Target(wish / here, metric, "global", at_least, multiple_of)
            final = number == rounds and not changes
            plan, left = _decided(now, target, how, tuple(ignore), seed, final=final, table=table)
            remarks = [*(r for r in remarks if r.code != "choose.left"), *left]
            if plan is not None and (final or _nearer(plan, start, now, metric, wish, table)):
                changes.append(shrinker.apply(plan, verify=True))
        first = len(course.history)
        course.run(shrinker.program, steps * number // rounds - steps * (number - 1) // rounds)
        held = [p.held for p in course.history[first:] if p.held is not None]
        before, after = (held[0], min(held)) if held else (None, None)
        done.append(Round(_left(start, shrinker.program, metric, table), before, after))
    program = shrinker.program.eval()
    own, why_not = into_own_class(network, start, changes, program, program, program.args)
    found = compare(start, program)
    return Iterated(program, own, tuple(done), tuple(course.history), found, (*remarks, *why_not))


def _decided(
    program: Program,
    target: Target,
    how: Importance,
    ignore: tuple[str, ...],
    seed: int,
    *,
    final: bool,
    table: LatencyTable | None,
) -> tuple[Plan | None, list[Remark]]:
    """What goes in a round; nothing, where another one removes the whole units, unless this is the last chance."""
    axes = solved(program)
    groups = find_groups(axes)
    limits = equal_parts(program, axes, groups)
    chooser = LatencyChooser(program, axes, target, table) if table else None
    try:
        plan, left = decide(program, axes, groups, target, how, ignore, seed, limits, chooser)
    except BudgetError:
        if final:
            raise
        return None, []
    return plan, [*left, *(chooser.remarks if chooser else ())]


def _nearer(
    plan: Plan,
    start: Program,
    now: Program,
    metric: Metric,
    wish: float,
    table: LatencyTable | None,
) -> bool:
    """Whether a plan brings the share that is left nearer to a wish: one unit may be too much."""
    small = apply_plan(now, solved(now), plan)
    after, before = (abs(_left(start, p, metric, table) - wish) for p in (small, now))
    return after < before


def _left(start: Program, now: Program, metric: Metric, table: LatencyTable | None) -> float:
    """The share of a metric that is left; of latency where there is a table."""
    if table is not None:
        return table.compare(start, now).ratio
    if metric == "units":
        before, after = (sum(map(len, find_groups(solved(p)))) for p in (start, now))
        return after / before
    found = compare(start, now).ratios
    return found["macs" if metric == "macs" else "parameters"]
