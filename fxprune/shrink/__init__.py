"""Applies a plan to a program: tensors are sliced, spelled sizes rewritten."""

from fxprune.shrink.engine import apply_plan

__all__ = ["apply_plan"]
