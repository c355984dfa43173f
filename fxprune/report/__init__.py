"""Reports for people and for programs: cost tables, latency, and the report of a pruning run."""

from fxprune.report.clock import Clock
from fxprune.report.curves import Curves
from fxprune.report.group_row import GroupRow, group_rows
from fxprune.report.latency import Latency, compare_latency
from fxprune.report.outcome import Outcome
from fxprune.report.report import Report, read_report
from fxprune.report.summary import Comparison, Row, Summary, compare, fold, summary

__all__ = [
    "Clock",
    "Comparison",
    "Curves",
    "GroupRow",
    "Latency",
    "Outcome",
    "Report",
    "Row",
    "Summary",
    "compare",
    "compare_latency",
    "fold",
    "group_rows",
    "read_report",
    "summary",
]
