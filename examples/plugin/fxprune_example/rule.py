"""Which axes of the operator go together: the last one of x, and those of scale and shift."""

from __future__ import annotations

from typing import Any

import fxprune as fp


@fp.rule("fxprune_example.scale_shift")
def scale_shift(u: Any, x: Any, scale: Any, shift: Any) -> Any:
    """The labels of the result: those of x, its last axis tied to scale and shift."""
    return u.broadcast(x, scale, shift)
