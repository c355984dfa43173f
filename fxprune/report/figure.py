"""Figures, drawn by matplotlib where it is installed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fxprune.errors import OptionError


def new_figure(where: str, width: float, height: float) -> Any:
    """A figure that needs no display, in inches; `figure.savefig(path)` writes it.

    Args:
        where: what draws, for the error.
        width: of the figure.
        height: of the figure.

    Raises:
        OptionError: matplotlib is not installed.
    """
    try:
        canvas = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg
        figure = import_module("matplotlib.figure").Figure(
            figsize=(width, height), layout="constrained"
        )
    except ImportError as error:
        raise OptionError(
            "matplotlib is not installed", where=where, do='pip install "fxprune[plot]"'
        ) from error
    canvas(figure)
    return figure
