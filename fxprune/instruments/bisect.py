"""Finds the pass, then the single rewrite of it, that breaks a program."""

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
    """What broke a program; prints as text.

    Attributes:
        found: whether anything did.
        failed: the pass, as pipeline text.
        step: its place among the passes as they ran, from 1.
        rewrite: the number of the single rewrite in the whole run, from 1; `limit=rewrite - 1` runs up to
            the last good state. None where the pass is wrong whatever it may rewrite.
        of: how many rewrites the pass asked for.
        remark: what that rewrite said of itself.
        error: what the check said.
        trials: how often a pass or a predicate was run.
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
            lines.append("no single rewrite does: the pass is wrong even where it may apply none")
        else:
            lines.append(f"rewrite {self.rewrite} does, one of {self.of} that the pass asked for:")
            lines += [f"  {line}" for line in str(self.remark or "").splitlines()]
            lines.append(f"the last good state: --limit {self.rewrite - 1}")
        return "\n".join([*lines, *(["", self.error] if self.error else [])])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        names = ("found", "failed", "step", "rewrite", "of", "error", "trials")
        data: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**data, "remark": None if self.remark is None else self.remark.to_json()}


def bisect(
    program: Program, pipeline: Steps, check: Predicate | None = None, seed: int = 0
) -> Bisection:
    """Finds the first pass that breaks a program, then the first of its rewrites that does.

    Rewrites are numbered as they ask for leave (`ctx.allow`); those up to the one found, and none after it,
    make the program wrong. The passes and the predicate must not depend on anything that changes from run
    to run.

    Args:
        program: a captured network.
        pipeline: pipeline text or passes.
        check: says whether a program is right; None: each pass is held to what it declares to keep.
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
            do="give one that holds at the start and not at the end",
        )
    broken = _first_broken(trial, ran) if check is None else _bisect_passes(trial, ran)
    if broken is None:
        return Bisection(found=False, trials=trial.count)
    return _bisect_rewrites(trial, ran[broken], broken + 1)


@dataclass
class _Entry:
    """One pass as it ran: what it was given, and what it left."""

    one: Pass
    before: Program
    start: Context
    after: Program | None = None


class _Trace(Instrument):
    """Keeps what every pass was given, with a context to run it again in."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []

    def before_pass(self, one: Pass, program: Program, ctx: Context) -> None:
        self.entries.append(_Entry(one, program, ctx.fork()))

    def after_pass(self, one: Pass, before: Program, after: Program, ctx: Context) -> None:
        self.entries[-1].after = after


class _Trial:
    """Runs one pass again with a limit, and judges it."""

    def __init__(self, check: Predicate | None) -> None:
        self._check = check
        self.count = 0
        self.error = ""

    def accepts(self, program: Program) -> bool:
        self.count += 1
        return self._check is None or bool(self._check(program))

    def holds(self, entry: _Entry, limit: int | None = None) -> bool:
        """Whether a pass does well when it may apply the rewrites up to a number."""
        return self.run(entry, limit)[0]

    def remark(self, entry: _Entry, number: int) -> Remark | None:
        """What the rewrite of a number says of itself."""
        return self.run(entry, number)[1].last_allowed

    def run(self, entry: _Entry, limit: int | None = None) -> tuple[bool, Context]:
        """The verdict on a pass under a limit, and the context it left."""
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
                self.error = "" if good else "the predicate rejects what the pass made"
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
    """The first pass that does not keep what it declares, or raises."""
    return next((i for i, entry in enumerate(ran) if not trial.holds(entry)), None)


def _bisect_passes(trial: _Trial, ran: list[_Entry]) -> int | None:
    """The first pass after which the predicate fails."""
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
