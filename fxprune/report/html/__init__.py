"""The report as one HTML page: a module for each section, and the frame around them."""

from fxprune.report.html.checks import checks, seconds
from fxprune.report.html.curves import curves
from fxprune.report.html.groups import Ties, groups
from fxprune.report.html.latency import latency
from fxprune.report.html.modules import modules
from fxprune.report.html.page import write_page
from fxprune.report.html.plan import plan_diff
from fxprune.report.html.remarks import remarks
from fxprune.report.html.totals import totals

__all__ = [
    "Ties",
    "checks",
    "curves",
    "groups",
    "latency",
    "modules",
    "plan_diff",
    "remarks",
    "seconds",
    "totals",
    "write_page",
]
