"""Which criterion scores units where none is named; docs/quality.md has the measurements behind the choice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fxprune.calibration import Calibration
from fxprune.errors import OptionError
from fxprune.importance.score import Importance

WITH_DATA, WITHOUT_DATA = "gauss-newton", "lamp"
FORWARD_ONLY = "wanda"


def default_criterion(data: Calibration | Iterable[Any] | None, *, gradients: bool = True) -> str:
    """The best criterion with data, or without; and with data where the weights are not in memory for a gradient."""
    if data is None:
        return WITHOUT_DATA
    return WITH_DATA if gradients else FORWARD_ONLY


def importance_of(
    given: str | Importance | None,
    data: Calibration | Iterable[Any] | None,
    *,
    gradients: bool = True,
) -> Importance:
    """What a caller gave as importance, with the data that came beside it.

    Args:
        given: a criterion, or None for the best one.
        data: that the caller has.
        gradients: whether the best one may need gradients.

    Raises:
        OptionError: it is no criterion, the data cannot be read, or there is data in two forms.
    """
    calibration = None if data is None else Calibration.of(data)
    how = default_criterion(calibration, gradients=gradients) if given is None else given
    if isinstance(how, str):
        return Importance(how, data=calibration)
    if not isinstance(how, Importance):
        raise OptionError(
            f"importance is a {type(how).__name__}, not a criterion",
            do='give a name, as "magnitude", or fp.Importance(...); fp.criterion registers functions of your own',
        )
    if calibration is None:
        return how
    if how.data is not None:
        raise OptionError(
            "there is data in two places",
            where="data, importance",
            do="leave it out of fp.Importance(...)",
        )
    return replace(how, data=calibration)
