"""Holds every pass to what it declares to keep."""

from __future__ import annotations

from fxprune.equivalence import compare_functions, randomised
from fxprune.errors import VerifyError
from fxprune.pipeline.context import Context
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Pass, Rewrite
from fxprune.program import Program
from fxprune.verify import Check, compare_programs


class VerifyEach(Instrument):
    """After each rewrite, compares what it made with what it was given, in float64.

    Where the program holds tensors of one repeated value (a fresh batch norm, a head of zeros), the pass
    is run a second time on a copy with noise on them, and that result is compared too. A pass that
    declares to keep nothing is not compared, and a remark says so.
    """

    def __init__(self) -> None:
        self._fork: Context | None = None

    def before_pass(self, one: Pass, program: Program, ctx: Context) -> None:
        self._fork = ctx.fork()

    def after_pass(self, one: Pass, before: Program, after: Program, ctx: Context) -> None:
        if after is before or not isinstance(one, Rewrite):
            return
        if reason := _not_comparable(one, before):
            ctx.remark(
                "analysis", "not-verified", before.name, "the result was not compared", reason
            )
            return
        ctx.checks.append(self._check(one, before, after, ctx))
        noisy = randomised(before, ctx.seed)
        if noisy is not before and self._fork is not None:
            again = one.rewrite(noisy, self._fork)
            ctx.checks.append(self._check(one, noisy, again, self._fork))

    def _check(self, one: Pass, before: Program, after: Program, ctx: Context) -> Check:
        if ctx.applied is not None:
            plan = ctx.applied
            check = compare_programs(before, ctx.axes(before), plan, after, seed=ctx.seed)
        else:
            check = compare_functions(before, after, seed=ctx.seed)
        if not check.ok:
            raise VerifyError(
                f"what {one.name} made differs from {check.against} in {check.worst_output}",
                where=check.first_bad_node,
                why=f"the pass declares to keep: {one.keeps}",
                do="find the rewrite with fp.bisect, leave the pass out, and report it",
            )
        return check


def _not_comparable(one: Pass, program: Program) -> str:
    if one.keeps == "nothing":
        return "the pass changes the function on purpose"
    if any(t.is_meta for t in program.tensors().values()):
        return "the program is on the meta device and has no numbers"
    return ""
