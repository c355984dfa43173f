"""Recovery after pruning: a smaller network learns what the original computes."""

from fxprune.training.recovery.iterative import prune_iteratively
from fxprune.training.recovery.recover import Recovered, recover

__all__ = ["Recovered", "prune_iteratively", "recover"]
