"""Plans for a wished latency: times of this machine's operators, what they predict, and what is measured."""

from fxprune.latency.choose import LatencyChooser
from fxprune.latency.predict import Predicted
from fxprune.latency.table import LatencyTable

__all__ = ["LatencyChooser", "LatencyTable", "Predicted"]
