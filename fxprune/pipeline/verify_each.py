"""Holds every pass to what it declares to keep."""

from __future__ import annotations

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
    compare_functions,
    compare_programs,
    in_double,
    new_types,
    randomised,
)


class VerifyEach(Instrument):
    """After each rewrite, compares what it made with what it was given, in float64.

    Where the program holds tensors of one repeated value (a fresh batch norm, a head of zeros), the pass
    is run a second time on a copy with noise on them, and that result is compared too; where the pass
    worked out numbers anew, that copy is in float64, so that rounding does not hide a wrong formula. A
    pass that declares to keep nothing is not compared, and a remark says so.
    """

    def __init__(self) -> None:
        self._fork = Context()
        self._given: Any = None

    def before_pass(self, one: Pass, program: Program, ctx: Context) -> None:
        self._fork, self._given = ctx.fork(), _state(program)

    def after_pass(self, one: Pass, before: Program, after: Program, ctx: Context) -> None:
        start = perf_counter()
        if _state(before) != self._given:
            raise VerifyError(
                f"{one.name} changed the program that it was given",
                why="a pass returns another program; here the graph or a tensor was written to in place",
                do="let it change a copy: ctx.edit(program); capture the model again",
            )
        self._compare(one, before, after, ctx)
        ctx.check_seconds = perf_counter() - start

    def _compare(self, one: Pass, before: Program, after: Program, ctx: Context) -> None:
        if after is before or not isinstance(one, PlainRewrite):
            return
        if reason := _not_comparable(one, before):
            ctx.remark(
                "analysis", "not-verified", before.name, "the result was not compared", reason
            )
            return
        noisy = randomised(before, ctx.seed)
        if new_types(before, after) - {torch.float64}:
            noisy = in_double(noisy)
        twice = noisy is not before
        ctx.checks.append(self._check(one, before, after, ctx, sizes=1 if twice else 2))
        if twice:
            again = one.rewrite(noisy, self._fork)
            ctx.checks.append(self._check(one, noisy, again, self._fork, sizes=2))

    def _check(
        self, one: Pass, before: Program, after: Program, ctx: Context, *, sizes: int
    ) -> Check:
        if ctx.applied is not None and one.keeps == "silenced":
            plan = ctx.applied
            check = compare_programs(before, ctx.axes(before), plan, after, seed=ctx.seed)
        else:
            check = compare_functions(before, after, seed=ctx.seed, sizes=sizes)
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
    if any(t.is_meta for t in program.tensors().values()):
        return "the program is on the meta device and has no numbers"
    return ""
