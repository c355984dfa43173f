"""The kinds of observers, by the names of their statistics."""

from __future__ import annotations

from typing import Literal

from fxprune.observe.contribution import Contribution
from fxprune.observe.covariance import Covariance
from fxprune.observe.maximum import Maximum
from fxprune.observe.mean import Mean
from fxprune.observe.observer import Observer
from fxprune.observe.on_fraction import OnFraction

Stat = Literal["on-fraction", "entropy", "mean", "max", "contribution", "covariance"]

KINDS: dict[str, type[Observer]] = {
    "on-fraction": OnFraction,
    "entropy": OnFraction,
    "mean": Mean,
    "max": Maximum,
    "contribution": Contribution,
    "covariance": Covariance,
}
