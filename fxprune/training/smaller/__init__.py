"""One call that trains a network and makes it smaller, around a method that is found by name."""

from fxprune.training.smaller.loop import train_smaller
from fxprune.training.smaller.method import Settings, TrainingMethod
from fxprune.training.smaller.result import Smaller

__all__ = ["Settings", "Smaller", "TrainingMethod", "train_smaller"]
