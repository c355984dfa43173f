"""Runs pipelines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from time import perf_counter

from fxprune.analysis.cache import hand_on
from fxprune.errors import FxpruneError, OptionError, PipelineError, VerifyError
from fxprune.graph.program import Program
from fxprune.pipeline.context import Context
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Analysis, Decision, Pass, PlainRewrite
from fxprune.pipeline.pipeline import Pipeline, Repeat
from fxprune.pipeline.result import Result, Step
from fxprune.pipeline.verify_each import VerifyEach
from fxprune.plan import Plan
from fxprune.verify import Check, how_to_verify


@dataclass
class _Run:
    ctx: Context
    instruments: Sequence[Instrument]
    disabled: dict[str, re.Pattern[str]]
    steps: list[Step] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)


def run_passes(
    program: Program, pipeline: Pipeline, ctx: Context, instruments: Iterable[Instrument] = ()
) -> Result:
    """Runs a pipeline on a program; `program` stays as it is.

    Args:
        program: a captured network.
        pipeline: the passes.
        ctx: a new one; says what is left out, how far to go, and whether passes are verified.
        instruments: what looks on.

    Raises:
        PipelineError: a pass failed, or broke what it declares; `error.program` is the program before it.
        OptionError: a rewrite would run while units wait to be removed.
    """
    how = how_to_verify(ctx.verify)
    judge = VerifyEach(how) if how else None
    looking = [*([judge] if judge else []), *instruments]
    run = _Run(ctx, looking, {name: re.compile(translate(name)) for name in ctx.disable})
    for instrument in looking:
        instrument.before_run(pipeline, program, ctx)
    final = _run_steps(run, pipeline, program)
    _conclude(run, pipeline, program)
    checks = _check_end(judge, pipeline, program, final, ctx) if judge else []
    result = Result(
        final,
        program,
        pipeline,
        tuple(run.steps),
        tuple(run.plans),
        frozenset(ctx.pending),
        tuple(ctx.remarks),
        tuple(dict.fromkeys(ctx.zeros)),
        tuple(checks),
    )
    for instrument in reversed(looking):
        instrument.after_run(result)
    return result


def _check_end(
    judge: VerifyEach, pipeline: Pipeline, given: Program, final: Program, ctx: Context
) -> list[Check]:
    """How the end of a run was verified as a whole."""
    try:
        return judge.conclude(final, ctx)
    except VerifyError as error:
        raise PipelineError(
            error.what,
            where=error.where or str(pipeline),
            why=error.why,
            do=error.do,
            program=given,
            failed="",
        ) from error


def _conclude(run: _Run, pipeline: Pipeline, program: Program) -> None:
    """Remarks on what had no effect."""
    ctx = run.ctx
    ctx.running = "pipeline"
    if ctx.pending:
        ctx.remark(
            "analysis",
            "pending",
            program.name,
            f"{len(ctx.pending)} units or branches are decided on and not removed",
            do="add `shrink` to the pipeline",
        )
    if not pipeline:
        ctx.remark("analysis", "empty", program.name, "nothing ran", "the pipeline has no pass")
    known = {one.name for one in pipeline.passes()}
    for glob, pattern in run.disabled.items():
        if not any(map(pattern.match, known)):
            ctx.remark(
                "analysis",
                "disabled-nothing",
                glob,
                "no pass of the pipeline has this name",
                f"it has {', '.join(sorted(known)) or 'none'}",
            )


def _run_steps(run: _Run, pipeline: Pipeline, program: Program) -> Program:
    for step in pipeline:
        program = (
            _repeat(run, step, program)
            if isinstance(step, Repeat)
            else _run_pass(run, step, program)
        )
    return program


def _repeat(run: _Run, loop: Repeat, program: Program) -> Program:
    for _ in range(loop.max):
        start, pending = program, set(run.ctx.pending)
        program = _run_steps(run, loop.body, program)
        if program is start and pending == run.ctx.pending:
            return program
    run.ctx.running = "repeat"
    run.ctx.remark(
        "analysis", "limit", program.name, f"still changing after {loop.max} rounds", do="raise max"
    )
    return program


def _run_pass(run: _Run, one: Pass, program: Program) -> Program:
    ctx = run.ctx
    ctx.start(one.name)
    if any(p.match(one.name) for p in run.disabled.values()):
        ctx.remark("analysis", "disabled", program.name, "the pass was left out on request")
        run.steps.append(Step(str(Pipeline([one])), disabled=True))
        return program
    _refuse_pending(one, ctx)
    before = (ctx.applied_count, len(ctx.pending), len(ctx.remarks))
    after = _watched(run, one, program)
    if ctx.applied is not None:
        run.plans.append(ctx.applied)
    if after is not program:
        hand_on(program, after, one.preserves)
    elif len(ctx.remarks) == before[2]:
        ctx.remark("analysis", "unchanged", program.name, "nothing to do", "no candidate was found")
    run.steps.append(
        Step(
            str(Pipeline([one])),
            ctx.seconds,
            after is not program or len(ctx.pending) != before[1],
            ctx.applied_count - before[0],
            tuple(ctx.checks),
            ctx.check_seconds,
        )
    )
    return after


def _watched(run: _Run, one: Pass, program: Program) -> Program:
    """Runs a pass between the hooks of the instruments; one of these may reject what it made."""
    for instrument in run.instruments:
        instrument.before_pass(one, program, run.ctx)
    try:
        start = perf_counter()
        after = _apply(one, program, run.ctx)
        run.ctx.seconds = perf_counter() - start
        for instrument in reversed(run.instruments):
            instrument.after_pass(one, program, after, run.ctx)
    except Exception as error:
        advice = [i.on_failure(one, program, error, run.ctx) for i in run.instruments]
        raise _failure(one, error, program, advice) from error
    return after


def _apply(one: Pass, program: Program, ctx: Context) -> Program:
    if isinstance(one, PlainRewrite):
        return _checked(one, one.rewrite(program, ctx))
    if isinstance(one, Decision):
        units = set(one.decide(program, ctx))
        ctx.pending |= units
        ctx.remark("analysis", "decided", program.name, f"{len(units)} units or branches are to go")
    elif isinstance(one, Analysis):
        ctx.remark("analysis", "result", program.name, str(ctx.get(one, program)))
    return program


def _checked(one: Pass, returned: object) -> Program:
    if not isinstance(returned, Program):
        raise OptionError(
            f"{one.name} returned a {type(returned).__name__}",
            do="let `rewrite` return a Program: the one that it was given where there is nothing to do",
        )
    return returned


def _refuse_pending(one: Pass, ctx: Context) -> None:
    if ctx.pending and isinstance(one, PlainRewrite) and not one.shrinks:
        raise OptionError(
            f"{one.name} would run while {len(ctx.pending)} units or branches wait to be removed",
            why="a rewrite changes the program that they were decided for",
            do=f"put `shrink` before {one.name}",
        )


def _failure(one: Pass, error: Exception, program: Program, advice: Iterable[str]) -> PipelineError:
    """The error with the pass in it, and what instruments advise."""
    if not isinstance(error, FxpruneError):
        error = FxpruneError(f"{type(error).__name__}: {error}")
    return PipelineError(
        f"pass {one.name} failed: {error.what}",
        where=error.where or str(Pipeline([one])),
        why=error.why,
        do="\n        ".join(
            filter(None, (error.do or f"leave {one.name} out, and report it", *advice))
        ),
        program=program,
        failed=one.name,
    )
