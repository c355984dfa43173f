"""Samples of every operator that has a rule, in one file per family of rules."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from fxprune.rules.table import FAMILIES
from fxprune.testing.sample import Sample

# Rules that no numbers can judge, and the name under which the same rule is judged.
ALIASES = {
    "aten.empty.memory_format": "aten.zeros",
    "aten.new_empty": "aten.new_zeros",
    "aten.empty_like": "aten.zeros_like",
    "tag.pointwise": "aten.add",
    "transformers.grouped_mm_fallback": "aten._grouped_mm",
}


@cache
def samples_of_family(family: str) -> tuple[Sample, ...]:
    """Returns all samples for the rules of `fxprune/rules/<family>.py`."""
    found: tuple[Sample, ...] = tuple(import_module(f"fxprune.testing.samples.{family}").SAMPLES)
    return found


def samples(name: str) -> tuple[Sample, ...]:
    """Returns the samples of one operator: `"aten.mean"` for all its overloads, `"aten.mean.dim"` for one."""
    every = (s for family in FAMILIES for s in samples_of_family(family))
    return tuple(s for s in every if name in (s.op, s.op.rpartition(".")[0]))
