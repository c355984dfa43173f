"""Pruning plans: selecting units, building a plan that removes them, and checking it against a program."""

from fxprune.plan.build import plan_removal
from fxprune.plan.check import check_plan
from fxprune.plan.fingerprint import fingerprint
from fxprune.plan.plan import Edit, Kept, Plan, Rescale, ScaleArgument, SetArgument
from fxprune.plan.select import units_of, units_of_kept

__all__ = [
    "Edit",
    "Kept",
    "Plan",
    "Rescale",
    "ScaleArgument",
    "SetArgument",
    "check_plan",
    "fingerprint",
    "plan_removal",
    "units_of",
    "units_of_kept",
]
