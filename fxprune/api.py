"""The library's verbs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from fxprune.analysis.cache import solved
from fxprune.analysis.explain import Explanation, explain_axis
from fxprune.analysis.group import Groups, find_groups
from fxprune.calibration import Calibration
from fxprune.capture import capture
from fxprune.cost import Metric
from fxprune.errors import OptionError, PlanError
from fxprune.graph.program import Program, require_program
from fxprune.importance import Importance, importance_of, score_remarks, score_units
from fxprune.instruments import bisect, read_environment, replay
from fxprune.latency import LatencyChooser, LatencyTable
from fxprune.partial import Partial
from fxprune.pipeline import Instrument, Result, run_pipeline
from fxprune.pipeline.run import Steps
from fxprune.plan import Plan, check_plan, plan_removal, units_of
from fxprune.plan.choose import NO_LIMITS, Target
from fxprune.plan.decide import decide
from fxprune.plan.limits import Limits
from fxprune.plan.parts import equal_parts
from fxprune.process.random_state import random_state_kept
from fxprune.process.state import plain_modes
from fxprune.remark import Remark
from fxprune.report import Clock, Outcome, Report, compare, group_rows, summary
from fxprune.shrink import apply_plan
from fxprune.verify import Check, How, Verify, check_capture, compare_programs, how_to_verify
from fxprune.verify.local import compare_plan
from fxprune.write_back.fits import Fit
from fxprune.write_back.wished import Wished

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


@plain_modes()
def groups(program: Program) -> Groups:
    """What may be removed: units by the parameter axes they cut; prints as a table."""
    return find_groups(solved(require_program(program)))


@plain_modes()
def explain(program: Program, param: str, axis: int) -> Explanation:
    """What goes with an axis of a parameter and why, as paths of operators, or why it stays.

    Raises:
        PlanError: the program has no such axis.
    """
    return explain_axis(solved(require_program(program)), param, axis)


@plain_modes()
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
    axes = solved(require_program(program))
    given: object = removed
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise PlanError(
            f"a {type(removed).__name__} says nothing of what to remove",
            do='give units of fp.groups(program), or {"layer1.0.conv1.weight": (0, [3, 5])}',
        )
    units = units_of(axes, removed) if isinstance(removed, Mapping) else removed
    return plan_removal(program, axes, units)


@plain_modes()
def shrink(program: Program, plan: Plan) -> Program:
    """The smaller program of a plan; `program` stays as it is.

    Raises:
        PlanError: the plan is for another program, or was edited wrongly.
    """
    axes = solved(require_program(program))
    return apply_plan(program, axes, check_plan(program, plan))


@plain_modes()
@random_state_kept()
def verify(
    program: Program,
    plan: Plan,
    small: Program,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Check:
    """Holds a smaller program against the silenced original on random inputs."""
    axes, small = solved(require_program(program)), require_program(small)
    return compare_programs(program, axes, check_plan(program, plan), small, dtype=dtype, seed=seed)


@plain_modes()
@random_state_kept()
def prune(
    model_or_program: torch.nn.Module | torch.export.ExportedProgram | Program | Partial,
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    keep: float | Mapping[str, float] | None = None,
    metric: Metric | None = None,
    importance: str | Importance | None = None,
    scope: Literal["global", "group"] = "global",
    ignore: Sequence[str] = (),
    multiple_of: int = 1,
    verify: Verify = "local",
    seed: int = 0,
    *,
    at_least: int = 1,
    data: Calibration | Iterable[Any] | None = None,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    fits: torch.nn.Module | None = None,
    to: Mapping[str, int] | None = None,
    latencies: LatencyTable | None = None,
) -> Outcome:
    """Removes the least important units until `keep` of a metric is left, and checks the result.

    Or, with `to`, until the model is one of its class with another config.

    Args:
        model_or_program: what to prune; it stays as it is. The parts of a `chunk` in a model stay equal. Of a
            `Partial` (see `capture_partial`) the parts are pruned and the whole is verified; the outcome has the
            smaller `model`.
        args: example inputs of a model.
        kwargs: example keyword inputs of a model.
        keep: share that stays, 0 < keep <= 1, by default 0.5; reached within 1 % where the sizes of units allow. Or
            globs -> the share of its units that a group keeps, {"layer3.*": 0.8, "*": 0.5}. A glob matches groups by
            their names, or by the paths of the modules whose outputs they cut; the first that matches decides, and
            groups that none matches stay whole. Scores only compare units of one group then, and `scope` says nothing.
        metric: macs, params, latency, or units (that share of each group). None: units for globs, otherwise macs.
            Latency is that of the example inputs on this machine, with the present number of threads; the result is
            measured, and `report.latency` says what came out. See docs/latency.md.
        importance: a criterion by name, or an `fp.Importance` with its options. None: the best one in
            docs/quality.md for the data there is; see `fxprune.importance.default_criterion`.
        scope: global: all units compete; group: each group loses the same share.
        ignore: globs of module paths whose own outputs stay as they are; their inputs may still narrow.
        multiple_of: lengths of shrunk axes are multiples of this.
        verify: "local", or True: each operator of the result is compared with that of the silenced original, in
            float64, and the whole once in its own precision. "full": the whole in float64. False: nothing. What was
            captured is compared with the model in its own precision.
        seed: for random scores and for the inputs of the check.
        at_least: units that every group keeps.
        data: batches of what the network is for, or an `fp.Calibration` that says how they go into it and what their
            loss is; for the criteria that read inputs or a loss.
        dynamic_batch: see `capture`.
        dynamic_shapes: which axes of the inputs may be free; see `capture`.
        fits: the model, where the plan must be one that its class can express: `outcome.written` is the smaller
            model. What it can express is learned by writing small plans back; see docs/how-to/take-home.md.
        to: fields of the model's config -> their new numbers, for a class that is built from its config, such as
            {"hidden_size": 1536, "num_attention_heads": 12}: `outcome.written` is the model with that config. Each
            group loses its least important units; what says how much is kept in another way must be left out.
        latencies: for the metric latency, where measured times are kept. None: `fp.LatencyTable()`.

    Raises:
        CaptureError, OptionError, PlanError, ScoreError, BudgetError, VerifyError: nothing of the user's has changed.
    """
    metric = metric or ("units" if isinstance(keep, Mapping) else "macs")
    verified = how_to_verify(verify)
    target = Target(0.5 if keep is None else keep, metric, scope, at_least, multiple_of)
    own = isinstance(model_or_program, torch.nn.Module)
    if to is not None:
        fits = _to_configure(model_or_program, fits, keep, target, ignore)
    stored = isinstance(model_or_program, Program) and model_or_program.stored is not None
    how = importance_of(importance, data, gradients=not stored)
    clock = Clock()
    partial = model_or_program if isinstance(model_or_program, Partial) else None
    program = _as_program(model_or_program, args, kwargs, dynamic_batch, dynamic_shapes)
    whole, wished, checked = program, None, model_or_program if own else None
    if to is not None and fits is not None:
        again = functools.partial(
            capture,
            args=program.args,
            kwargs=program.kwargs,
            dynamic_batch=dynamic_batch,
            dynamic_shapes=dynamic_shapes,
        )
        wished = Wished(fits, program, to, again)
        program, checked = wished.program, wished.model if own else None
    clock.lap("capture")
    axes = solved(program)
    found = find_groups(axes)
    clock.lap("solve")

    chooser = None
    if target.metric == "latency":
        chooser = LatencyChooser(program, axes, target, latencies or LatencyTable())

    def decided_within(limits: Limits) -> tuple[Plan, list[Remark]]:
        return decide(program, axes, found, target, how, ignore, seed, limits, chooser)

    fitted = None
    if wished is not None:
        fitted = wished.decide(score_units(program, axes, found, how, seed))
        decided, left = fitted.plan, fitted.remarks
    elif fits is None:  # a class of one's own may chunk
        decided, left = decided_within(equal_parts(program, axes, found) if own else NO_LIMITS)
    else:
        fitted = Fit(fits, program, axes, found).decide(decided_within)
        decided, left = fitted.plan, fitted.remarks
    clock.lap("decide")
    small = apply_plan(program, axes, decided)
    clock.lap("shrink")
    model = partial.apply(decided) if partial else None
    checks, unchecked = _verified(
        program, decided, small, partial or (checked if own else None), verified, seed
    )
    clock.lap("verify")
    report = Report(
        before=summary(whole),
        after=summary(small),
        groups=group_rows(found, decided),
        checks=checks,
        remarks=(
            *program.remarks,
            *(partial.opaque if partial else ()),
            *axes.remarks,
            *unchecked,
            *score_remarks(program, how),
            *left,
            *(chooser.remarks if chooser else ()),
        ),
        seconds=clock.laps,
        latency=chooser.latency if chooser else None,
        plan=decided,
    )
    return Outcome(small, decided, report, program, model, fitted.model if fitted else None)


@plain_modes()
@random_state_kept()
def run(
    model_or_program: torch.nn.Module | torch.export.ExportedProgram | Program,
    args: Any,
    pipeline: Steps,
    kwargs: Mapping[str, Any] | None = None,
    *,
    verify: Verify = "local",
    instruments: Sequence[Instrument] = (),
    disable: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
) -> Result:
    """Runs passes on a model; `fp.run(model, args, "drop-identity | dead-code")`.

    Environment variables add to it: see docs/pipelines.md.

    Args:
        model_or_program: what to rewrite; it stays as it is.
        args: example inputs of a model; None for a Program.
        pipeline: text, passes, or functions on a GraphModule; or a sequence of these.
        kwargs: example keyword inputs of a model.
        verify: "local", or True: what each pass changed is compared in float64, region by region, and the whole
            network once in the end, in its own precision. "full": the whole in float64 after each pass. False:
            nothing. A pass that breaks what it declares is rolled back. A model is compared with what was
            captured from it.
        instruments: what looks on.
        disable: names (globs) of passes to leave out.
        limit: apply no more than so many single rewrites.
        seed: of random choices and of the inputs of checks.
        dynamic_batch: see `capture`.
        dynamic_shapes: which axes of the inputs may be free; see `capture`.

    Raises:
        PipelineError: a pass failed, or broke what it declares; `error.program` is the program before it.
        CaptureError, OptionError, VerifyError: nothing has run.
    """
    asked = read_environment()
    verify = verify if asked.verify is None else asked.verify
    how = how_to_verify(verify)
    program = _as_program(model_or_program, args, kwargs, dynamic_batch, dynamic_shapes)
    if how and isinstance(model_or_program, torch.nn.Module):
        few = how == "local"
        _, unchecked = check_capture(model_or_program, program, seed=seed, few=few)
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


def _verified(
    program: Program,
    decided: Plan,
    small: Program,
    source: object,
    how: How | None,
    seed: int,
) -> tuple[list[Check], list[Remark]]:
    """Holds a smaller program against the original, and the original against what it was captured from.

    Raises:
        VerifyError: they differ.
    """
    if how is None:
        return [], []
    found, why = compare_plan(program, solved(program), decided, small, how=how, seed=seed)
    checks, remarks = [check.raise_if_bad() for check in found], list[Remark]()
    if why:
        what = "the whole network was compared in float64, not only operator by operator"
        remarks.append(Remark("analysis", "verify.whole", program.name, what, why))
    if isinstance(source, Partial):
        checks.append(source.verify(decided, seed=seed).raise_if_bad())
    elif isinstance(source, torch.nn.Module):
        captured, unchecked = check_capture(source, program, seed=seed, few=how == "local")
        checks, remarks = checks + captured, remarks + unchecked
    return checks, remarks


def _to_configure(
    source: Any,
    fits: torch.nn.Module | None,
    keep: float | Mapping[str, float] | None,
    target: Target,
    ignore: Sequence[str],
) -> torch.nn.Module:
    """The model that gets a wished config; what says how much is to go in another way is refused."""
    if keep is not None or ignore or target != Target(target.keep):
        raise OptionError(
            "a wished config already says how much of every layer is to go",
            where="to=",
            why="keep, metric, scope, ignore, multiple_of and at_least say it in another way",
            do="leave these out, or leave out to=",
        )
    model = source if isinstance(source, torch.nn.Module) and fits is None else fits
    if model is None:
        raise OptionError(
            "there is no model whose config could be edited",
            where="to=",
            why="what is pruned is a captured program",
            do="pass the model itself, or fits=model",
        )
    return model


def _as_program(
    source: Any,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    dynamic_batch: bool,
    dynamic_shapes: Any,
) -> Program:
    if isinstance(source, Partial):
        return source.program
    if isinstance(source, Program):
        return source
    return capture(
        source,
        args,
        kwargs,
        dynamic_batch=dynamic_batch,
        dynamic_shapes=dynamic_shapes,
    )
