"""A bar over steps on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def step_bar(shown: bool) -> Progress:
    """A bar that is gone when it ends; lines are printed above it by `bar.console`."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown
    )
