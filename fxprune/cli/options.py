"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
Weights = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="weights of MODEL: safetensors, or a state_dict of torch.save, read without running code; "
        "DEFAULT: those that torchvision or timm have for it",
    ),
]
Arguments = Annotated[
    str,
    typer.Option(
        "--args",
        metavar="JSON",
        help="arguments of MODEL's class or function: an object of keywords, such as "
        "'{\"num_classes\": 10}', or a list",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="CALLABLE",
        help="batches: package.module:callable or file.py:callable, a function that returns a DataLoader, a list of "
        "batches or an fp.Calibration, or one of these itself",
    ),
]
LossOf = Annotated[
    str,
    typer.Option(
        "--loss",
        metavar="CALLABLE",
        help="the loss of a batch: a function of outputs and batch, named as --data is; without it, that of labels",
    ),
]
Batches = Annotated[
    int | None,
    typer.Option(min=1, max=2**31, metavar="N", help="read no more than so many batches of --data"),
]
Parts = Annotated[
    bool,
    typer.Option(
        "--partial",
        help="capture the largest submodules that torch.export can capture, not the whole model",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print the result as one JSON document")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="seed for random weights, inputs and scores")
]
How = Annotated[
    Literal["local", "full"],
    typer.Option(
        "--verify",
        help="local: compare what changed, region by region, and the whole once; full: the whole in float64",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="import the functions that a pipeline, a reproducer or the directory of a model names",
    ),
]
Depth = Annotated[
    int | None,
    typer.Option(min=0, help="sum up modules below this depth in the modules that contain them"),
]
Folder = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="write the result to a directory")
]
Force = Annotated[bool, typer.Option("--force", help="replace what fxprune wrote to --out before")]


def example(*words: str) -> str:
    """Returns the examples shown below a command's options; the first line keeps click from wrapping them."""
    title = "Example" if len(words) == 1 else "Examples"
    return f"\b\n{title}:\n" + "\n".join(f"  fxprune {w}" for w in words)
