"""Passes, how they are named and written, and the manager that runs them."""

from fxprune.pipeline.context import Context
from fxprune.pipeline.kinds import Analysis, Decision, Pass, Rewrite, Unit
from fxprune.pipeline.manager import Result, run_pipeline
from fxprune.pipeline.pipeline import Pipeline, Repeat

__all__ = [
    "Analysis",
    "Context",
    "Decision",
    "Pass",
    "Pipeline",
    "Repeat",
    "Result",
    "Rewrite",
    "Unit",
    "run_pipeline",
]
