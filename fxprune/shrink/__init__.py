"""Applies a plan to a program: slices its tensors and rewrites the sizes in its graph."""

from fxprune.shrink.engine import apply_plan

__all__ = ["apply_plan"]
