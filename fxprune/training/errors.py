"""The error of shrinking during training."""

from __future__ import annotations

from fxprune.errors import FxpruneError


class TrainingError(FxpruneError):
    """A shrinking was refused, or something of the old network is still in use; nothing has changed."""
