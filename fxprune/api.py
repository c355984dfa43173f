"""The library's verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal

import torch

from fxprune.analysis.axes import Axes, BoolArray
from fxprune.analysis.explain import Explanation, explain_axis
from fxprune.analysis.group import Groups, find_groups
from fxprune.capture import capture
from fxprune.cost import Cost, mac_terms, param_terms
from fxprune.errors import BudgetError
from fxprune.graph.program import Program, module_path
from fxprune.importance import Importance, score_units
from fxprune.instruments import bisect, read_environment, replay
from fxprune.partial import Partial
from fxprune.pipeline import Instrument, Result, run_pipeline
from fxprune.pipeline.cache import solved
from fxprune.pipeline.manager import Steps
from fxprune.plan import Plan, check_plan, plan_removal, units_of
from fxprune.plan.choose import (
    Candidates,
    Metric,
    Target,
    choose,
    find_candidates,
    ignored_parameters,
)
from fxprune.remark import Remark
from fxprune.report import GroupRow, Report, compare, summary
from fxprune.shrink import apply_plan
from fxprune.verify import Check, check_capture, compare_programs

__all__ = [
    "Outcome",
    "bisect",
    "capture",
    "compare",
    "explain",
    "groups",
    "plan",
    "prune",
    "replay",
    "run",
    "shrink",
    "solved",
    "summary",
    "verify",
]


def groups(program: Program) -> Groups:
    """What may be removed: units by the parameter axes they cut; prints as a table."""
    return find_groups(solved(program))


def explain(program: Program, param: str, axis: int) -> Explanation:
    """What goes with an axis of a parameter and why, as paths of operators, or why it stays.

    Raises:
        PlanError: the program has no such axis.
    """
    return explain_axis(solved(program), param, axis)


def plan(
    program: Program, removed: Iterable[int] | Mapping[str, tuple[int, Iterable[int]]]
) -> Plan:
    """The plan that removes units, or positions of parameter axes with all that is coupled to them.

    Args:
        program: a captured network.
        removed: units of `fp.groups(program)`, or {"layer1.0.conv1.weight": (axis, [positions])}.

    Raises:
        PlanError: see `fxprune.plan`.
    """
    axes = solved(program)
    units = units_of(axes, removed) if isinstance(removed, Mapping) else removed
    return plan_removal(program, axes, units)


def shrink(program: Program, plan: Plan) -> Program:
    """The smaller program of a plan; `program` stays as it is.

    Raises:
        PlanError: the plan is for another program, or was edited wrongly.
    """
    return apply_plan(program, solved(program), check_plan(program, plan, solved))


def verify(
    program: Program,
    plan: Plan,
    small: Program,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Check:
    """Holds a smaller program against the silenced original on random inputs."""
    checked = check_plan(program, plan, solved)
    return compare_programs(program, solved(program), checked, small, dtype=dtype, seed=seed)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What `prune` returns.

    Attributes:
        program: the smaller program; `program.module` is an ordinary GraphModule.
        plan: what was decided.
        report: sizes before and after, groups, checks, remarks and seconds; prints as tables.
        original: the program that was pruned.
        model: of a partial capture, the smaller model: the pruned parts back in their places.
    """

    program: Program
    plan: Plan
    report: Report
    original: Program = field(repr=False)
    model: torch.nn.Module | None = field(default=None, repr=False)

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What was done, what was left, and why."""
        return tuple(self.report.remarks)


def prune(
    model_or_program: torch.nn.Module | torch.export.ExportedProgram | Program | Partial,
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    keep: float = 0.5,
    metric: Metric = "macs",
    importance: str | Importance = "magnitude",
    scope: Literal["global", "group"] = "global",
    ignore: Sequence[str] = (),
    multiple_of: int = 1,
    verify: bool = True,
    seed: int = 0,
    *,
    at_least: int = 1,
    dynamic_batch: bool = True,
) -> Outcome:
    """Removes the least important units until `keep` of a metric is left, and checks the result.

    Args:
        model_or_program: what to prune; it stays as it is. Of a `Partial` (see `capture_partial`) the
            parts are pruned and the whole is verified; the outcome has the smaller `model`.
        args: example inputs of a model.
        kwargs: example keyword inputs of a model.
        keep: share that stays, 0 < keep <= 1; reached within 1 % where the sizes of units allow.
        metric: macs, params, or units (that share of each group).
        importance: a criterion by name, or an `fp.Importance` with its options.
        scope: global: all units compete; group: each group loses the same share.
        ignore: globs of module paths whose own outputs stay as they are; their inputs may still narrow.
        multiple_of: lengths of shrunk axes are multiples of this.
        verify: hold the result against the silenced original in float64, and what was captured against the
            model in its own precision; an error where they differ.
        seed: for random scores and for the inputs of the check.
        at_least: units that every group keeps.
        dynamic_batch: see `capture`.

    Raises:
        CaptureError, OptionError, ScoreError, BudgetError, VerifyError: nothing of the user's has changed.
    """
    target = Target(keep, metric, scope, at_least, multiple_of)
    how = Importance(importance) if isinstance(importance, str) else importance
    clock = _Clock()
    partial = model_or_program if isinstance(model_or_program, Partial) else None
    program = _as_program(model_or_program, args, kwargs, dynamic_batch=dynamic_batch)
    clock.lap("capture")
    axes = solved(program)
    found = find_groups(axes)
    clock.lap("solve")
    decided, candidates = _decide(program, axes, found, target, how, ignore, seed)
    clock.lap("decide")
    small = apply_plan(program, axes, decided)
    clock.lap("shrink")
    model = partial.apply(decided) if partial else None
    checks = _checks(program, partial, decided, small, seed) if verify else []
    unchecked: list[Remark] = []
    if verify and isinstance(model_or_program, torch.nn.Module):
        captured, unchecked = check_capture(model_or_program, program, seed=seed)
        checks += captured
    clock.lap("verify")
    report = Report(
        before=summary(program),
        after=summary(small),
        groups=_group_rows(found, decided),
        checks=checks,
        remarks=(
            *program.remarks,
            *(partial.opaque if partial else ()),
            *axes.remarks,
            *unchecked,
            *_left(candidates),
        ),
        seconds=clock.laps,
    )
    return Outcome(small, decided, report, program, model)


def run(
    model_or_program: torch.nn.Module | torch.export.ExportedProgram | Program,
    args: Any,
    pipeline: Steps,
    kwargs: Mapping[str, Any] | None = None,
    *,
    verify: bool = True,
    instruments: Sequence[Instrument] = (),
    disable: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    dynamic_batch: bool = True,
) -> Result:
    """Runs passes on a model; `fp.run(model, args, "drop-identity | dead-code")`.

    Environment variables add to it: see docs/pipelines.md.

    Args:
        model_or_program: what to rewrite; it stays as it is.
        args: example inputs of a model; None for a Program.
        pipeline: text, passes, or functions on a GraphModule; or a sequence of these.
        kwargs: example keyword inputs of a model.
        verify: hold each pass to what it declares to keep, one that does not is rolled back; and what was
            captured to the model.
        instruments: what looks on.
        disable: names (globs) of passes to leave out.
        limit: apply no more than so many single rewrites.
        seed: of random choices and of the inputs of checks.
        dynamic_batch: see `capture`.

    Raises:
        PipelineError: a pass failed, or broke what it declares; `error.program` is the program before it.
        CaptureError, OptionError, VerifyError: nothing has run.
    """
    asked = read_environment()
    verify = verify if asked.verify is None else asked.verify
    program = _as_program(model_or_program, args, kwargs, dynamic_batch=dynamic_batch)
    if verify and isinstance(model_or_program, torch.nn.Module):
        _, unchecked = check_capture(model_or_program, program, seed=seed)
        program = replace(program, remarks=(*program.remarks, *unchecked))
    return run_pipeline(
        program,
        pipeline,
        instruments=(*instruments, *asked.instruments),
        verify=verify,
        disable=(*disable, *asked.disable),
        limit=asked.limit if limit is None else limit,
        seed=seed,
    )


def _as_program(
    source: Any, args: Any, kwargs: Mapping[str, Any] | None, *, dynamic_batch: bool
) -> Program:
    if isinstance(source, Partial):
        return source.program
    if isinstance(source, Program):
        return source
    return capture(
        source, args, None if kwargs is None else dict(kwargs), dynamic_batch=dynamic_batch
    )


def _checks(
    program: Program, partial: Partial | None, decided: Plan, small: Program, seed: int
) -> list[Check]:
    """What was verified: the program, and of a partial capture the whole model too."""
    found = [compare_programs(program, solved(program), decided, small, seed=seed).raise_if_bad()]
    if partial is not None:
        found.append(partial.verify(decided, seed=seed).raise_if_bad())
    return found


def _decide(
    program: Program,
    axes: Axes,
    found: Groups,
    target: Target,
    how: Importance,
    ignore: Sequence[str],
    seed: int,
) -> tuple[Plan, Candidates]:
    ignored = ignored_parameters(list(axes.params), module_paths(program), ignore)
    scores = score_units(program, axes, found, how, seed)
    candidates = find_candidates(axes, found, scores, target, ignored)
    units = choose(axes, candidates, scores, target, cost_of(program, axes, target.metric))
    if not units.size:
        raise BudgetError(
            "nothing would be removed",
            why="\n        ".join(
                ["no candidate may lose a unit:", *_reasons(axes, candidates, target)]
            ),
            do="lower keep, multiple_of or at_least, or ignore less",
        )
    return plan_removal(program, axes, units), candidates


def cost_of(program: Program, axes: Axes, metric: Metric) -> Callable[[BoolArray], int]:
    """The exact cost of a program after a removal, by metric."""
    terms = mac_terms(program, axes) if metric == "macs" else param_terms(program, axes)
    return Cost(terms, axes.n_units).total


def module_paths(program: Program) -> list[str]:
    """Every module path that holds tensors or made a node."""
    paths = {name.rpartition(".")[0] for name in program.tensors()} | {
        module_path(n) for n in program.nodes
    }
    parents = {p.rsplit(".", i)[0] for p in paths for i in range(p.count(".") + 1)}
    return sorted((paths | parents) - {""})


def _reasons(axes: Axes, candidates: Candidates, target: Target) -> list[str]:
    """One line for each candidate that was left."""
    lines = [f"{name}: {why}" for name, why in candidates.refused.items()]
    lines += [
        f"{g.name}: {len(g)} units in steps of {step}, keep={target.keep} asks for less than a step"
        for g, step in zip(candidates.groups, candidates.steps, strict=True)
    ]
    for name, labels in axes.params.items():
        for i, label in enumerate(labels[:1] if len(labels) > 1 else ()):
            if not any(c.any() for c in label.columns):
                lines.append(
                    f"{name}:{i}: {explain_axis(axes, name, i).frozen.splitlines()[-1].strip()}"
                )
    return lines


def _left(candidates: Candidates) -> list[Remark]:
    return [
        Remark("missed", "choose.left", name, "no unit was removed", why)
        for name, why in candidates.refused.items()
    ]


def _group_rows(found: Groups, decided: Plan) -> tuple[GroupRow, ...]:
    gone = set(decided.removed.tolist())
    return tuple(
        GroupRow(g.name, len(g), len(g) - len(gone.intersection(g.units.tolist())), g.exact)
        for g in found
    )


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self.laps[name], self._last = now - self._last, now
