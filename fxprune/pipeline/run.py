"""Runs what people give as a pipeline: text, passes, functions on a GraphModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.pipeline.context import Context
from fxprune.pipeline.foreign import fx_pass
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Pass
from fxprune.pipeline.manager import run_passes
from fxprune.pipeline.pipeline import Pipeline, Repeat
from fxprune.pipeline.result import Result
from fxprune.verify import Verify

Steps = str | Pass | Repeat | Pipeline | Callable[..., Any] | Sequence[Any]


def as_pipeline(steps: Steps) -> Pipeline:
    """A pipeline from text, a pass, a function on a GraphModule, or a sequence of these.

    Raises:
        OptionError: the text cannot be read, or something is no pass.
    """
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
    if not isinstance(steps, Iterable):
        raise OptionError(
            f"a {type(steps).__name__} is no pipeline",
            do='write passes as text, "insert-gates | delete-gated", or give a list of them',
        )
    return Pipeline([as_pipeline(step) for step in steps])


def run_pipeline(
    program: Program,
    steps: Steps,
    *,
    instruments: Iterable[Instrument] = (),
    verify: Verify = "local",
    disable: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> Result:
    """Runs passes on a program; `program` stays as it is.

    Args:
        program: a captured network.
        steps: pipeline text, passes, or functions on a GraphModule.
        instruments: what looks on.
        verify: how each pass is held to what it declares to keep; see `fp.run`.
        disable: names (globs) of passes to leave out.
        limit: apply no more than so many single rewrites.
        seed: of random choices and of the inputs of checks.

    Raises:
        PipelineError: a pass failed, or broke what it declares; `error.program` is the program before it.
        OptionError: an unknown pass or option.
    """
    if limit is not None and limit < 0:
        raise OptionError(f"limit={limit}", do="give a number of rewrites, 0 or more")
    ctx = Context(seed=seed, limit=limit, verify=verify, disable=tuple(disable))
    return run_passes(program, as_pipeline(steps), ctx, instruments)
