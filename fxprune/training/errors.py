"""What goes wrong while a network shrinks in the middle of its training."""

from __future__ import annotations

from fxprune.errors import FxpruneError


class TrainingError(FxpruneError):
    """A shrinking was refused, or something of the network before it is still in use; nothing has changed."""
