"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="name or path of the model; see `fxprune --help`")
]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--input",
        default_factory=list,
        show_default=False,
        metavar="SHAPE",
        help="shape and optional dtype of an example input, such as 2x3x224x224 or 2x16:int64; "
        "repeat for each input, in order; NAME=SHAPE passes it by keyword",
    ),
]
Dynamic = Annotated[
    list[str],
    typer.Option(
        "--dynamic",
        default_factory=list,
        show_default=False,
        metavar="AXES",
        help="axes of the inputs that may have other sizes: all that the model allows (the default), batch, none, or "
        "of an input those that have to, such as x=0,2,3; can be repeated",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print the result as one JSON document")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="seed for random weights, inputs and scores")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="import the modules that the pipeline names functions of")
]
Depth = Annotated[
    int | None,
    typer.Option(min=0, help="sum up modules below this depth in the modules that contain them"),
]


def example(words: str) -> str:
    """Returns the example shown below a command's options; the first line keeps click from wrapping it."""
    return f"\b\nExample:\n  fxprune {words}"
