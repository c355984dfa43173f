"""Capture: turns a model into a `Program`."""

from fxprune.capture.export import capture

__all__ = ["capture"]
