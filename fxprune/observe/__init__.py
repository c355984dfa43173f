"""Observers: leaf modules that pass a value through and gather running statistics of its units.

Memory use is constant. Counts are 64-bit integers and sums are float64, so that statistics merged
from several batches or processes equal those of a single pass over all the data; averages are never
averaged.
"""

from fxprune.observe.collection import Observers, observer_nodes, observers
from fxprune.observe.contribution import Contribution
from fxprune.observe.covariance import Covariance
from fxprune.observe.kinds import KINDS, Stat
from fxprune.observe.maximum import Maximum
from fxprune.observe.mean import Mean
from fxprune.observe.observer import Observer
from fxprune.observe.on_fraction import OnFraction
from fxprune.observe.replicas import count_apart

__all__ = [
    "KINDS",
    "Contribution",
    "Covariance",
    "Maximum",
    "Mean",
    "Observer",
    "Observers",
    "OnFraction",
    "Stat",
    "count_apart",
    "observer_nodes",
    "observers",
]

# Saved programs name a class by its module: by this one, wherever in the package it is written.
for _kind in (Observer, *KINDS.values()):
    _kind.__module__ = __name__
