"""Sensitivity: by how much the loss rises when a part of a network goes, part by part."""

from fxprune.sensitivity.measure import sensitivity
from fxprune.sensitivity.result import BlockResponse, GroupResponse, Sensitivity

__all__ = ["BlockResponse", "GroupResponse", "Sensitivity", "sensitivity"]
