"""Programs and models on disk: a directory with the graph or the class, the weights, the plan and the report."""

from fxprune.io.model import load_model
from fxprune.io.program import load, save
from fxprune.io.report import load_report

__all__ = ["load", "load_model", "load_report", "save"]
