"""Passes, how they are named and written, and the manager that runs them."""

from fxprune.pipeline.context import Context
from fxprune.pipeline.foreign import fx_pass
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Analysis, Branch, Decision, Keeps, Pass, Rewrite, Unit
from fxprune.pipeline.manager import run_pipeline
from fxprune.pipeline.pipeline import Pipeline, Repeat
from fxprune.pipeline.result import Result, Step

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
