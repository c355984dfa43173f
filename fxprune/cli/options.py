"""Options that several verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="see `fxprune --help`")]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--input",
        default_factory=list,
        show_default=False,
        metavar="SHAPE",
        help="example input, 2x3x224x224 or 2x16:int64; once for each input, in order",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
Seed = Annotated[int, typer.Option(help="of random weights, inputs and scores")]
Depth = Annotated[int | None, typer.Option(help="add modules deeper than this to those above them")]


def example(words: str) -> str:
    """Text under the options of a verb; the first line keeps click from wrapping."""
    return f"\b\nExample:\n  fxprune {words}"
