"""Runs pipelines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from time import perf_counter
from typing import Any

from fxprune.errors import FxpruneError, OptionError, PipelineError
from fxprune.graph.program import Program
from fxprune.pipeline.cache import hand_on
from fxprune.pipeline.context import Context
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Analysis, Decision, Pass, Rewrite
from fxprune.pipeline.pipeline import Pipeline, Repeat
from fxprune.pipeline.result import Result, Step
from fxprune.pipeline.verify_each import VerifyEach
from fxprune.plan import Plan

Steps = str | Pass | Repeat | Pipeline | Callable[..., Any] | Sequence[Any]


@dataclass
class _Run:
    ctx: Context
    instruments: Sequence[Instrument]
    disabled: dict[str, re.Pattern[str]]
    steps: list[Step] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)


def as_pipeline(steps: Steps) -> Pipeline:
    """A pipeline from text, a pass, a function on a GraphModule, or a sequence of these.

    Raises:
        OptionError: the text cannot be read, or something is no pass.
    """
    from fxprune.pipeline.foreign import fx_pass

    if isinstance(steps, Pipeline):
        return steps
    if isinstance(steps, str):
        return Pipeline.parse(steps)
    if isinstance(steps, Pass | Repeat):
        return Pipeline([steps])
    if isinstance(steps, type):
        raise OptionError(
            f"{steps.__name__} is a class, not a pass", do=f"give an instance: {steps.__name__}()"
        )
    if callable(steps):
        return Pipeline([fx_pass(steps)])
    return Pipeline([as_pipeline(step) for step in steps])


def run_pipeline(
    program: Program,
    steps: Steps,
    *,
    instruments: Iterable[Instrument] = (),
    verify: bool = True,
    disable: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> Result:
    """Runs passes on a program; `program` stays as it is.

    Args:
        program: a captured network.
        steps: pipeline text, passes, or functions on a GraphModule.
        instruments: what looks on.
        verify: hold each pass to what it declares to keep.
        disable: names (globs) of passes to leave out.
        limit: apply no more than so many single rewrites.
        seed: of random choices and of the inputs of checks.

    Raises:
        PipelineError: a pass failed, or broke what it declares; `error.program` is the program before it.
        OptionError: an unknown pass or option.
    """
    if limit is not None and limit < 0:
        raise OptionError(f"limit={limit}", do="give a number of rewrites, 0 or more")
    pipeline = as_pipeline(steps)
    looking = [*([VerifyEach()] if verify else []), *instruments]
    ctx = Context(seed=seed, limit=limit, verify=verify, disable=tuple(disable))
    run = _Run(ctx, looking, {name: re.compile(translate(name)) for name in disable})
    for instrument in looking:
        instrument.before_run(pipeline, program, ctx)
    final = _run_steps(run, pipeline, program)
    _conclude(run, pipeline, program)
    result = Result(
        final,
        program,
        pipeline,
        tuple(run.steps),
        tuple(run.plans),
        frozenset(ctx.pending),
        tuple(ctx.remarks),
    )
    for instrument in reversed(looking):
        instrument.after_run(result)
    return result


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
    ctx.start(one)
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
    if isinstance(one, Rewrite):
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
    if ctx.pending and isinstance(one, Rewrite) and not one.shrinks:
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
