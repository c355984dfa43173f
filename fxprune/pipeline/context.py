"""What a running pass may ask for: analyses, remarks, random numbers, leave to rewrite."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from torch import fx

from fxprune.analysis.axes import Axes
from fxprune.analysis.cache import remember, solved
from fxprune.graph.editor import Editor
from fxprune.graph.program import Program, describe
from fxprune.pipeline.removal import Branch, Unit
from fxprune.plan import Plan, plan_removal
from fxprune.remark import Kind, Remark
from fxprune.shrink import apply_plan
from fxprune.verify import Check, Verify

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Question(Protocol[T_co]):
    """What a context answers once for each program: an analysis, by its options."""

    def __hash__(self) -> int: ...

    def analyse(self, program: Program, ctx: Context) -> T_co: ...


@dataclass
class Context:
    """The state of one run of a pipeline.

    Attributes:
        seed: of `rng`, and of the inputs of checks.
        limit: how many single rewrites may still be applied in all; None for any number.
        count: how many rewrites have been asked for so far.
        remarks: what was done, what was left, and why.
        pending: units and branches that decisions want gone and no `shrink` has removed yet.
        applied: the plan that the running pass has applied, where it removed units.
        applied_count: how many rewrites were allowed so far.
        checks: how the running pass was verified.
        zeros: the names of nodes whose values became 0, in the programs that had them.
        running: name of the running pass.
        verify: how each pass is held to what it declares; see `fp.run`.
        disable: globs of the passes that are left out.
        seconds: wall time of the pass that ran last.
        check_seconds: wall time of its checks.
        last_allowed: the remark of the single rewrite that was allowed last.
    """

    seed: int = 0
    limit: int | None = None
    count: int = 0
    remarks: list[Remark] = field(default_factory=list)
    pending: set[Unit | Branch] = field(default_factory=set)
    applied: Plan | None = None
    applied_count: int = 0
    checks: list[Check] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)
    running: str = ""
    verify: Verify = "local"
    disable: tuple[str, ...] = ()
    seconds: float = 0.0
    check_seconds: float = 0.0
    last_allowed: Remark | None = None

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def start(self, name: str) -> None:
        """Forgets what only concerned the pass before the one of this name."""
        self.running, self.applied, self.checks = name, None, []
        self.seconds = self.check_seconds = 0.0

    def fork(self) -> Context:
        """A context that a pass can be run again with, on another program, unseen by this one."""
        twin = Context(
            self.seed,
            self.limit,
            self.count,
            pending=set(self.pending),
            applied_count=self.applied_count,
            running=self.running,
        )
        twin.rng = copy.deepcopy(self.rng)
        return twin

    def get(self, analysis: Question[T], program: Program) -> T:
        """The result of an analysis, worked out once for each program."""
        return remember(program, analysis, lambda: analysis.analyse(program, self))

    def axes(self, program: Program) -> Axes:
        """The labels of a program, worked out once."""
        return solved(program)

    def edit(self, program: Program) -> Editor:
        """A copy of the program to change."""
        return Editor(program)

    def allow(self, where: fx.Node | str, what: str, *, code: str, why: str = "") -> bool:
        """Asks leave for one rewrite: counts it, and remarks on it where it may be done.

        A pass asks once for every single change that makes sense alone, and leaves out what it may not
        do: that is how a fault is traced to one rewrite.
        """
        self.count += 1
        allowed = self.limit is None or self.count <= self.limit
        if allowed:
            self.applied_count += 1
            self.remark("applied", code, where, what, why)
            self.last_allowed = self.remarks[-1]
        return allowed

    def missed(self, where: fx.Node | str, what: str, why: str, *, code: str, do: str = "") -> None:
        """Says why a candidate was left."""
        self.remark("missed", code, where, what, why, do)

    def remark(
        self, kind: Kind, code: str, where: fx.Node | str, what: str, why: str = "", do: str = ""
    ) -> None:
        """Adds a remark of the running pass; `code` is stable, `pass.word`."""
        place = describe(where) if isinstance(where, fx.Node) else where
        self.remarks.append(Remark(kind, f"{self.running}.{code}", place, what, why, do))

    def remove(self, program: Program, units: Iterable[Unit]) -> Program:
        """The program without some units; checks of this pass silence them in the program before it."""
        plan = plan_removal(program, self.axes(program), units)
        self.applied = plan
        return apply_plan(program, self.axes(program), plan)
