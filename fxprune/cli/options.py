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
Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="of random weights, inputs and scores")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="import the modules that the pipeline names functions of")
]
Depth = Annotated[
    int | None, typer.Option(min=0, help="add modules deeper than this to those above them")
]


def example(words: str) -> str:
    """Text under the options of a verb; the first line keeps click from wrapping."""
    return f"\b\nExample:\n  fxprune {words}"
