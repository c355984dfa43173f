"""Finds the pass that breaks a program, then the single rewrite of that pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fxprune.errors import FxpruneError, OptionError, PipelineError
from fxprune.graph.program import Program
from fxprune.pipeline.context import Context
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Pass, PlainRewrite
from fxprune.pipeline.pipeline import Pipeline
from fxprune.pipeline.run import Steps, as_pipeline, run_pipeline
from fxprune.pipeline.verify_each import VerifyEach
from fxprune.remark import Remark

Predicate = Callable[[Program], bool]


@dataclass(frozen=True)
class Bisection:
    """The pass and the rewrite that break a program; prints as text.

    Attributes:
        found: whether anything breaks the program.
        failed: the pass, as pipeline text.
        step: its number among the passes that ran, from 1.
        rewrite: the number of the rewrite in the whole run, from 1; a run with `limit=rewrite - 1` ends in the
            last good state. None if the pass breaks the program even without any rewrite.
        of: the number of rewrites that the pass asked for.
        remark: the remark of that rewrite.
        error: the message of the check that failed.
        trials: how many times a pass or a predicate was run.
        program: the program before the pass.
    """

    found: bool
    failed: str = ""
    step: int = 0
    rewrite: int | None = None
    of: int = 0
    remark: Remark | None = None
    error: str = ""
    trials: int = 0
    program: Program | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        if not self.found:
            return f"nothing breaks the program ({self.trials} trials)"
        lines = [f"pass {self.failed}, step {self.step}, breaks the program ({self.trials} trials)"]
        if self.rewrite is None:
            lines.append(
                "no single rewrite is the cause: the pass breaks it even when no rewrite is allowed"
            )
        else:
            lines.append(
                f"the cause is rewrite {self.rewrite}, one of {self.of} that the pass asked for:"
            )
            lines += [f"  {line}" for line in str(self.remark or "").splitlines()]
            lines.append(f"to stop at the last good state, run with --limit {self.rewrite - 1}")
        return "\n".join([*lines, *(["", self.error] if self.error else [])])

    def to_json(self) -> dict[str, Any]:
        """Returns plain data."""
        names = ("found", "failed", "step", "rewrite", "of", "error", "trials")
        data: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**data, "remark": None if self.remark is None else self.remark.to_json()}


def bisect(
    program: Program, pipeline: Steps, check: Predicate | None = None, seed: int = 0
) -> Bisection:
    """Finds the first pass that breaks a program, then the first of its rewrites that does.

    Rewrites are numbered in the order in which they ask for permission (`ctx.allow`). The rewrite that is
    found is the smallest number such that the rewrites up to it make the program wrong. The passes and the
    predicate must be deterministic.

    Args:
        program: a captured network.
        pipeline: pipeline text or passes.
        check: a predicate that returns whether a program is right; None checks each pass against what it
            declares to preserve.
        seed: see `fp.run`.

    Raises:
        OptionError: the predicate rejects the program before the first pass.
    """
    trace = _Trace()
    trial, ran = _Trial(check), trace.entries
    with suppress(PipelineError):  # a pass that raises is the last one of the trace
        run_pipeline(program, as_pipeline(pipeline), instruments=[trace], verify=False, seed=seed)
    if check is not None and not trial.accepts(program):
        raise OptionError(
            "the predicate rejects the program before the first pass",
            do="pass a predicate that accepts the program before the first pass and rejects the final one",
        )
    broken = _first_broken(trial, ran) if check is None else _bisect_passes(trial, ran)
    if broken is None:
        return Bisection(found=False, trials=trial.count)
    return _bisect_rewrites(trial, ran[broken], broken + 1)


@dataclass
class _Entry:
    """One pass of the run, with its input and its output."""

    one: Pass
    before: Program
    start: Context
    after: Program | None = None


class _Trace(Instrument):
    """Records the input of every pass, with a context in which the pass can be run again."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []

    def before_pass(self, one: Pass, program: Program, ctx: Context) -> None:
        self.entries.append(_Entry(one, program, ctx.fork()))

    def after_pass(self, one: Pass, before: Program, after: Program, ctx: Context) -> None:
        self.entries[-1].after = after


class _Trial:
    """Runs one pass again with a limit, and judges the result."""

    def __init__(self, check: Predicate | None) -> None:
        self._check = check
        self.count = 0
        self.error = ""

    def accepts(self, program: Program) -> bool:
        self.count += 1
        return self._check is None or bool(self._check(program))

    def holds(self, entry: _Entry, limit: int | None = None) -> bool:
        """Returns whether a pass is right when it may apply only the rewrites up to a number."""
        return self.run(entry, limit)[0]

    def remark(self, entry: _Entry, number: int) -> Remark | None:
        """Returns the remark of the rewrite with a given number."""
        return self.run(entry, number)[1].last_allowed

    def run(self, entry: _Entry, limit: int | None = None) -> tuple[bool, Context]:
        """Returns the verdict on a pass under a limit, and the context that it left."""
        self.error, ctx = "", entry.start.fork()
        ctx.limit = limit
        ctx.start(entry.one.name)
        if not isinstance(entry.one, PlainRewrite):
            return True, ctx
        watch = VerifyEach()
        try:
            watch.before_pass(entry.one, entry.before, ctx)
            after = entry.one.rewrite(entry.before, ctx)
            if self._check is not None:
                good = self.accepts(after)
                self.error = "" if good else "the predicate rejects the result of the pass"
                return good, ctx
            self.count += 1
            watch.after_pass(entry.one, entry.before, after, ctx)
        except FxpruneError as error:
            self.error = str(error)
            return False, ctx
        except Exception as error:  # a pass may fail in any way
            self.error = f"{type(error).__name__}: {error}"
            return False, ctx
        return True, ctx


def _first_broken(trial: _Trial, ran: list[_Entry]) -> int | None:
    """Returns the first pass that raises or changes what it declares to preserve."""
    return next((i for i, entry in enumerate(ran) if not trial.holds(entry)), None)


def _bisect_passes(trial: _Trial, ran: list[_Entry]) -> int | None:
    """Returns the first pass after which the predicate fails."""
    if not ran or _left_well(trial, ran[-1]):
        return None
    good, bad = -1, len(ran) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if _left_well(trial, ran[middle]):
            good = middle
        else:
            bad = middle
    return bad


def _left_well(trial: _Trial, entry: _Entry) -> bool:
    return entry.after is not None and trial.accepts(entry.after)


def _bisect_rewrites(trial: _Trial, entry: _Entry, step: int) -> Bisection:
    good = entry.start.count
    _, whole = trial.run(entry)
    bad, number, error = whole.count, None, trial.error
    if bad > good and trial.holds(entry, good):
        while bad - good > 1:
            middle = (good + bad) // 2
            if trial.holds(entry, middle):
                good = middle
            else:
                bad = middle
        number = bad
    return Bisection(
        found=True,
        failed=str(Pipeline([entry.one])),
        step=step,
        rewrite=number,
        of=whole.count - entry.start.count,
        remark=None if number is None else trial.remark(entry, number),
        error=error,
        trials=trial.count,
        program=entry.before,
    )
