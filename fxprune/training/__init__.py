"""Training that shrinks: one transaction over the network, its optimizer and all that goes with them."""

from fxprune.training.agree import all_reduced, broadcast_plan, check_agreed, rewrap
from fxprune.training.errors import TrainingError
from fxprune.training.shrinker import Change, Shrinker

__all__ = [
    "Change",
    "Shrinker",
    "TrainingError",
    "all_reduced",
    "broadcast_plan",
    "check_agreed",
    "rewrap",
]
