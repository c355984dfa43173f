"""The `fxprune` command. Exit codes: 0 success, 1 a check or a pass failed, 2 invalid input."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fxprune import __version__
from fxprune.cli import apply, export, layers, look, prune, quality, report, run

if TYPE_CHECKING:
    from fxprune.errors import FxpruneError

HELP = """Structured pruning of PyTorch models, verified numerically.

\b
MODEL is one of
  torchvision:resnet50          a torchvision model
  timm:vit_tiny_patch16_224     a timm model
  package.module:callable       a class, or a function that returns an nn.Module
  path/to/net.py:callable       the same in a file
  path/to/directory             a directory written by --out or fp.save

\b
--weights FILE loads weights into it, --args JSON gives arguments to its class:
  fxprune prune net.py:Net --args '{"width": 8}' --weights net.safetensors --input 2x3x32x32 --out smaller
  fxprune prune torchvision:resnet18 --weights DEFAULT --out smaller
Without weights a model is random; only its structure is then worth looking at.

\b
To get started:
  fxprune summary torchvision:resnet18 --depth 1
  fxprune groups torchvision:resnet18
  fxprune prune torchvision:resnet18 --keep macs=0.5 --out smaller
  fxprune summary smaller --depth 1
  fxprune report smaller --out smaller.html

\b
To delete residual blocks, to keep the model's own class, to export the result:
  fxprune layers torchvision:resnet18 --delete "layer[34].1" --out shallow
  fxprune prune net.py:Net --weights net.pt --input 2x3x32x32 --class --out own
  fxprune export smaller --format onnx --out smaller.onnx

\b
To apply a plan to a checkpoint that is larger than memory, shard by shard:
  fxprune apply plan.json --from CHECKPOINT --to SMALLER

\b
To score units by data, to measure and to recover what a network does:
  fxprune prune net.py:Net --weights net.pt --input 2x3x32x32 --data data.py:loader --out smaller
  fxprune recover smaller --teacher net.py:Net --teacher-weights net.pt --data data.py:loader --steps 200 --out better
  fxprune evaluate better --data data.py:test_loader

\b
To run a pipeline of passes, each of which is verified:
  fxprune passes
  fxprune run torchvision:resnet18 "drop-identity | dead-code" --print-changed

\b
To prune a model of which torch.export can capture only parts:
  fxprune prune my.detector:make --input 2x3x320x320 --partial --out smaller
The directory then contains weights, plan and report, but no graph.
To load it in Python:
  fp.capture_partial(model, args).load("smaller")

Exit codes: 0 success, 1 a check or a pass failed, 2 invalid input.
"""

app = typer.Typer(
    name="fxprune",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fxprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    """Options before the command."""


for family in (look, prune, apply, quality, report, layers, run, export):
    family.register(app)


def main() -> None:
    """Runs the command line; errors of fxprune are printed without a traceback."""
    from fxprune.errors import FxpruneError

    try:
        app()
    except FxpruneError as error:
        print(error, file=sys.stderr)
        sys.exit(exit_code(error))
    except OSError as error:  # stdout is a pipe that nobody reads, a disk is full
        print(f"the system refuses: {error}", file=sys.stderr)
        sys.exit(2)


def exit_code(error: FxpruneError) -> int:
    """Returns 1 if a check or a pass failed, 2 if the request cannot be carried out."""
    from fxprune.errors import FxpruneError, PipelineError, VerifyError

    if isinstance(error, PipelineError):
        cause = error.__cause__
        return 1 if isinstance(cause, VerifyError) or not isinstance(cause, FxpruneError) else 2
    return 1 if isinstance(error, VerifyError) else 2
