"""Figures of matplotlib that need no display."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fxprune.errors import OptionError


def new_figure(width: float, height: float, what: str) -> Any:
    """A figure to draw on and to save.

    Args:
        width: in inches.
        height: in inches.
        what: asks for it, for the error.

    Raises:
        OptionError: matplotlib is not installed.
    """
    try:
        canvas = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg
        figure = import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise OptionError(
            "matplotlib is not installed", where=what, do='pip install "fxprune[plot]"'
        ) from error
    made = figure(figsize=(width, height), layout="constrained")
    canvas(made)
    return made
