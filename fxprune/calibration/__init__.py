"""Data: what goes into a network, its loss, and what is estimated from both."""

from fxprune.calibration.calibration import Calibration
from fxprune.calibration.evaluate import Evaluation, evaluate
from fxprune.calibration.recalibrate import recalibrate

__all__ = ["Calibration", "Evaluation", "evaluate", "recalibrate"]
