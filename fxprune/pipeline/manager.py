"""Runs pipelines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase, translate
from time import perf_counter
from typing import Any

from fxprune.errors import FxpruneError, OptionError, PipelineError
from fxprune.pipeline.cache import hand_on
from fxprune.pipeline.context import Context
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Analysis, Decision, Pass, Rewrite, Unit
from fxprune.pipeline.pipeline import Pipeline, Repeat
from fxprune.pipeline.verify_each import VerifyEach
from fxprune.plan import Plan
from fxprune.program import Program
from fxprune.remark import Remark
from fxprune.verify import Check

Steps = str | Pass | Pipeline | Callable[..., Any] | Sequence[Any]


@dataclass(frozen=True)
class Step:
    """One pass as it ran.

    Attributes:
        text: the pass as pipeline text.
        seconds: wall time of the pass itself, without checks.
        changed: whether the program is another one now, or units were decided on.
        rewrites: how many single rewrites it applied.
        checks: how its result was verified; empty where it was not.
    """

    text: str
    seconds: float
    changed: bool
    rewrites: int
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """What running a pipeline gives.

    Attributes:
        program: the program after the last pass.
        original: the program that was given.
        pipeline: what ran.
        steps: every pass as it ran, loops unrolled.
        plans: the plan of every pass that removed units, in order.
        pending: units that were decided on and that no `shrink` removed.
        remarks: what was done, what was left, and why.
    """

    program: Program
    original: Program
    pipeline: Pipeline
    steps: tuple[Step, ...]
    plans: tuple[Plan, ...]
    pending: frozenset[Unit]
    remarks: tuple[Remark, ...]

    @property
    def changed(self) -> bool:
        """Whether the program is another one than at the start."""
        return self.program is not self.original

    def select(self, glob: str = "*", kind: str = "*") -> list[Remark]:
        """The remarks of passes, and of a kind: `result.select("fuse-linear", "missed")`."""
        return [
            r
            for r in self.remarks
            if fnmatchcase(r.code.split(".")[0], glob) and fnmatchcase(r.kind, kind)
        ]


@dataclass
class _Run:
    ctx: Context
    instruments: Sequence[Instrument]
    disabled: re.Pattern[str] | None
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
    pipeline = as_pipeline(steps)
    looking = [*instruments, *([VerifyEach()] if verify else [])]
    ctx = Context(seed=seed, limit=limit)
    run = _Run(ctx, looking, _any_of(disable))
    for instrument in looking:
        instrument.before_run(pipeline, program, ctx)
    final = _run_steps(run, pipeline, program)
    if ctx.pending:
        ctx.running = "pipeline"
        ctx.remark(
            "analysis",
            "pending",
            program.name,
            f"{len(ctx.pending)} units are decided on and not removed",
            do="add `shrink` to the pipeline",
        )
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


def _any_of(globs: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(translate, globs))) if globs else None


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
        start = program
        program = _run_steps(run, loop.body, program)
        if program is start:
            return program
    run.ctx.running = "repeat"
    run.ctx.remark(
        "analysis", "limit", program.name, f"still changing after {loop.max} rounds", do="raise max"
    )
    return program


def _run_pass(run: _Run, one: Pass, program: Program) -> Program:
    ctx = run.ctx
    ctx.start(one)
    if run.disabled is not None and run.disabled.match(one.name):
        ctx.remark("analysis", "disabled", program.name, "the pass was left out on request")
        return program
    _refuse_pending(one, ctx)
    before = (ctx.applied_count, len(ctx.pending), len(ctx.remarks))
    after, seconds = _watched(run, one, program)
    if ctx.applied is not None:
        run.plans.append(ctx.applied)
    if after is not program:
        hand_on(program, after, one.preserves)
    elif len(ctx.remarks) == before[2]:
        ctx.remark("analysis", "unchanged", program.name, "nothing to do", "no candidate was found")
    run.steps.append(
        Step(
            str(Pipeline([one])),
            seconds,
            after is not program or len(ctx.pending) != before[1],
            ctx.applied_count - before[0],
            tuple(ctx.checks),
        )
    )
    return after


def _watched(run: _Run, one: Pass, program: Program) -> tuple[Program, float]:
    """Runs a pass between the hooks of the instruments; one of these may reject what it made."""
    for instrument in run.instruments:
        instrument.before_pass(one, program, run.ctx)
    try:
        start = perf_counter()
        after = _apply(one, program, run.ctx)
        seconds = perf_counter() - start
        for instrument in reversed(run.instruments):
            instrument.after_pass(one, program, after, run.ctx)
    except Exception as error:
        for instrument in run.instruments:
            instrument.on_failure(one, program, error, run.ctx)
        raise _failure(one, error, program) from error
    return after, seconds


def _apply(one: Pass, program: Program, ctx: Context) -> Program:
    if isinstance(one, Rewrite):
        return one.rewrite(program, ctx)
    if isinstance(one, Decision):
        units = set(one.decide(program, ctx))
        ctx.pending |= units
        ctx.remark("analysis", "decided", program.name, f"{len(units)} units are to go")
    elif isinstance(one, Analysis):
        ctx.remark("analysis", "result", program.name, str(ctx.get(one, program)))
    return program


def _refuse_pending(one: Pass, ctx: Context) -> None:
    if ctx.pending and isinstance(one, Rewrite) and not one.shrinks:
        raise OptionError(
            f"{one.name} would run while {len(ctx.pending)} units wait to be removed",
            why="a rewrite changes the program that they were decided for",
            do=f"put `shrink` before {one.name}",
        )


def _failure(one: Pass, error: Exception, program: Program) -> PipelineError:
    """The error with the pass in it."""
    if not isinstance(error, FxpruneError):
        error = FxpruneError(f"{type(error).__name__}: {error}")
    return PipelineError(
        f"pass {one.name} failed: {error.what}",
        where=error.where or str(Pipeline([one])),
        why=error.why,
        do=error.do or f"leave {one.name} out, and report it",
        program=program,
        failed=one.name,
    )
