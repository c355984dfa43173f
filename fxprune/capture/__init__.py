"""Capture: from a model to a Program."""

from fxprune.capture.export import capture

__all__ = ["capture"]
