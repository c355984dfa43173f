"""Holds every pass to what it declares to keep."""

from __future__ import annotations

from contextlib import suppress
from time import perf_counter
from typing import Any

import torch

from fxprune.errors import VerifyError
from fxprune.graph.program import Program
from fxprune.pipeline.context import Context
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Pass, PlainRewrite
from fxprune.verify import (
    Check,
    How,
    compare_functions,
    compare_programs,
    in_double,
    new_types,
    randomised,
)
from fxprune.verify.local import CannotCompareError, LocalFunctions, Seen, Whole, compare_plan


class VerifyEach(Instrument):
    """After each rewrite, compares what it made with what it was given, in float64.

    Where tensors hold one repeated value (a fresh batch norm, a head of zeros), noise is added to them. A pass that
    works out numbers anew is run a second time on a copy with this noise in float64, so that rounding does not hide
    a wrong formula. A pass that declares to keep nothing is not compared, and a remark says so.

    Args:
        how: `full` compares whole networks. `local` compares what a pass changed, region by region, and the whole
            only where that decides nothing; and in the end, the whole once in its own precision.
    """

    def __init__(self, how: How = "full") -> None:
        self._how = how
        self._fork = Context()
        self._known: Program | None = None
        self._given: Any = None
        self._start: Whole | None = None
        self._seen: Seen | None = None
        self._ends: list[Check] = []

    def before_pass(self, one: Pass, program: Program, ctx: Context) -> None:
        self._fork = ctx.fork()
        if self._known is not program:
            self._known, self._given = program, _state(program)

    def after_pass(self, one: Pass, before: Program, after: Program, ctx: Context) -> None:
        start = perf_counter()
        if _state(before) != self._given:
            raise VerifyError(
                f"{one.name} changed the program that it was given",
                why="a pass returns another program; here the graph or a tensor was written to in place",
                do="let it change a copy: ctx.edit(program); capture the model again",
            )
        if after is not before and isinstance(one, PlainRewrite):
            self._compare(one, before, after, ctx)
        ctx.check_seconds = perf_counter() - start

    def conclude(self, program: Program, ctx: Context) -> list[Check]:
        """Compares the program at the end of a run with that at the start, or behind the last pass that changed it.

        Returns:
            That check, behind those of the ends before passes that keep nothing.

        Raises:
            VerifyError: the two differ.
        """
        start, self._start = self._start, None
        if start is None or start.program is program:
            return self._ends
        check = start.compare(program)
        if not check.ok:  # perhaps by rounding
            check = compare_functions(start.program, program, seed=ctx.seed)
            check.raise_if_undefined()
        if not check.ok:
            raise VerifyError(
                f"what the passes made differs from the program before in {check.worst_output}",
                where=check.first_bad_node,
                why="no pass showed it by itself",
                do='find the pass with verify="full", and report it',
            )
        self._ends.append(check)
        return self._ends

    def _compare(self, one: PlainRewrite, before: Program, after: Program, ctx: Context) -> None:
        reason = _not_comparable(one, before)
        if self._how == "local" and (reason or one.keeps == "silenced"):
            self.conclude(before, ctx)
            self._seen = None
        if reason:
            ctx.remark(
                "analysis", "not-verified", before.name, "the result was not compared", reason
            )
        elif self._how == "full" or not self._compare_locally(one, before, after, ctx):
            self._compare_whole(one, before, after, ctx)

    def _compare_locally(
        self, one: PlainRewrite, before: Program, after: Program, ctx: Context
    ) -> bool:
        """Whether what a pass changed agrees region by region; a remark where that is not known."""
        try:
            ctx.checks += self._local_checks(one, before, after, ctx)
        except CannotCompareError as error:
            ctx.remark(
                "analysis",
                "verified-whole",
                before.name,
                "the whole network was compared, not only what the pass changed",
                str(error),
            )
            self._seen = None
            return False
        return True

    def _local_checks(
        self, one: PlainRewrite, before: Program, after: Program, ctx: Context
    ) -> list[Check]:
        if ctx.applied is not None and one.keeps == "silenced":
            plan, axes = ctx.applied, ctx.axes(before)
            checks, why = compare_plan(before, axes, plan, after, how="local", seed=ctx.seed)
            if why:
                raise CannotCompareError(why)
            return checks
        if self._start is None:
            self._start = Whole(before, ctx.seed)
        if self._seen is None:
            self._seen = Whole(before, ctx.seed).see()
        local = LocalFunctions(before, after, self._seen)
        noise, rounds = local.noise(ctx.seed), local.rounds()
        if not noise and not rounds:
            return [local.check({})]
        if not local.is_new():
            with suppress(CannotCompareError):  # the pass may rely on a repeated value
                return [local.check(noise)]
        plain = local.check({}, plain=True)
        noisy = (
            in_double(before, local.read(), noise)
            if rounds
            else randomised(before, ctx.seed, noise)
        )
        again = self._again(one, noisy)
        if again is noisy:
            return [local.check({})]
        return [plain, LocalFunctions(noisy, again, self._seen).check({})]

    def _again(self, one: PlainRewrite, noisy: Program) -> Program:
        """What a pass makes of a copy that has noise in a part of it."""
        try:
            return one.rewrite(noisy, self._fork.fork())
        except Exception as error:  # such as for tensors of two types
            raise CannotCompareError(
                f"the pass does not run on a copy with noise: {type(error).__name__}"
            ) from error

    def _compare_whole(
        self, one: PlainRewrite, before: Program, after: Program, ctx: Context
    ) -> None:
        noisy = randomised(before, ctx.seed)
        if new_types(before, after) - {torch.float64}:
            noisy = in_double(noisy)
        twice = noisy is not before
        ctx.checks.append(self._check(one, before, after, ctx, sizes=1 if twice else 2))
        if twice:
            fork = self._fork.fork()
            again = one.rewrite(noisy, fork)
            ctx.checks.append(self._check(one, noisy, again, fork, sizes=2))

    def _check(
        self, one: Pass, before: Program, after: Program, ctx: Context, *, sizes: int
    ) -> Check:
        if ctx.applied is not None and one.keeps == "silenced":
            plan = ctx.applied
            check = compare_programs(before, ctx.axes(before), plan, after, seed=ctx.seed)
        else:
            check = compare_functions(before, after, seed=ctx.seed, sizes=sizes)
        check.raise_if_undefined()
        if not check.ok:
            raise VerifyError(
                f"what {one.name} made differs from {check.against} in {check.worst_output}",
                where=check.first_bad_node,
                why=f"the pass declares to keep: {one.keeps}",
                do="find the rewrite with fp.bisect, leave the pass out, and report it",
            )
        return check


def _state(program: Program) -> Any:
    """What changes when the graph or a parameter is written to; running a program writes to buffers only."""
    versions = {
        name: (id(p), 0 if p.is_inference() else p._version)
        for name, p in program.module.named_parameters(remove_duplicate=False)
    }
    return str(program.graph), versions


def _not_comparable(one: Pass, program: Program) -> str:
    if one.keeps == "nothing":
        return "the pass changes the function on purpose"
    if not program.has_numbers:
        return "the program is on the meta device and has no numbers"
    return ""
