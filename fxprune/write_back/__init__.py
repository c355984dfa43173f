"""Applies a plan to the original nn.Module: slices its tensors and adjusts the attributes that repeat sizes.

The class and its forward code stay as they are. Sizes that a custom class stores itself, such as a number
of heads, are unknown to fxprune: `register_sizes` declares them; otherwise the plan is refused.
"""

from fxprune.write_back import torch_modules  # noqa: F401  (fills the table)
from fxprune.write_back.layers import Removed
from fxprune.write_back.refuse import refuse_edits
from fxprune.write_back.sizes import Attributes, Cut, Sizer, register_sizes
from fxprune.write_back.write import Written, write_back, write_tensors, written

__all__ = [
    "Attributes",
    "Cut",
    "Removed",
    "Sizer",
    "Written",
    "refuse_edits",
    "register_sizes",
    "write_back",
    "write_tensors",
    "written",
]
