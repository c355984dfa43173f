"""Reports for people and for programs: cost tables, latency, and the report of a pruning run."""

from fxprune.report.latency import Latency, compare_latency
from fxprune.report.report import GroupRow, Report
from fxprune.report.summary import Comparison, Row, Summary, compare, fold, summary

__all__ = [
    "Comparison",
    "GroupRow",
    "Latency",
    "Report",
    "Row",
    "Summary",
    "compare",
    "compare_latency",
    "fold",
    "summary",
]
