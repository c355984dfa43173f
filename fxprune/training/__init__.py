"""Pruning during training: the network, its optimizer and everything that depends on them shrink together."""

from fxprune.training.adapters import EpochShrinker, lightning_callback, trainer_callback
from fxprune.training.agree import all_reduced, broadcast_plan, check_agreed, rewrap
from fxprune.training.errors import TrainingError
from fxprune.training.history import Epoch, History
from fxprune.training.point import Point
from fxprune.training.shrinker import Change, Shrinker

__all__ = [
    "Change",
    "Epoch",
    "EpochShrinker",
    "History",
    "Point",
    "Shrinker",
    "TrainingError",
    "all_reduced",
    "broadcast_plan",
    "check_agreed",
    "lightning_callback",
    "rewrap",
    "trainer_callback",
]
