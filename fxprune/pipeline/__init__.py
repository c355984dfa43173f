"""Passes, how they are named and written, and the manager that runs them."""

from fxprune.pipeline.context import Context
from fxprune.pipeline.foreign import fx_pass
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Analysis, Decision, Keeps, Pass
from fxprune.pipeline.pipeline import Pipeline, Repeat
from fxprune.pipeline.removal import Branch, Unit
from fxprune.pipeline.result import Result, Step
from fxprune.pipeline.rewrite import Rewrite
from fxprune.pipeline.run import run_pipeline

__all__ = [
    "Analysis",
    "Branch",
    "Context",
    "Decision",
    "Instrument",
    "Keeps",
    "Pass",
    "Pipeline",
    "Repeat",
    "Result",
    "Rewrite",
    "Step",
    "Unit",
    "fx_pass",
    "run_pipeline",
]
