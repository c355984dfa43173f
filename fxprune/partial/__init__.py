"""Partial capture: the largest submodules that export, where the whole model does not."""

from fxprune.partial.partial import Partial, capture_partial

__all__ = ["Partial", "capture_partial"]
