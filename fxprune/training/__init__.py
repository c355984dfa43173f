"""Pruning during training: the network, its optimizer and everything that depends on them shrink together."""

from fxprune.training.adapters import EpochShrinker, lightning_callback, trainer_callback
from fxprune.training.agree import all_reduced, broadcast_plan, check_agreed
from fxprune.training.errors import TrainingError
from fxprune.training.history import Epoch, History
from fxprune.training.point import Point
from fxprune.training.recovery import Recovered, prune_iteratively, recover
from fxprune.training.rewrap import rewrap
from fxprune.training.sharded_model import shrink_sharded
from fxprune.training.shrinker import Change, Shrinker
from fxprune.training.smaller import Settings, Smaller, TrainingMethod, train_smaller

__all__ = [
    "Change",
    "Epoch",
    "EpochShrinker",
    "History",
    "Point",
    "Recovered",
    "Settings",
    "Shrinker",
    "Smaller",
    "TrainingError",
    "TrainingMethod",
    "all_reduced",
    "broadcast_plan",
    "check_agreed",
    "lightning_callback",
    "prune_iteratively",
    "recover",
    "rewrap",
    "shrink_sharded",
    "train_smaller",
    "trainer_callback",
]
