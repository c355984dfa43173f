"""The command that applies a plan to a checkpoint on disk: apply."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.options import Arguments, Dynamic, Inputs, Json, example


def apply(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="a plan written by --plan-out or plan.save")
    ],
    source: Annotated[
        Path,
        typer.Option(
            "--from",
            metavar="DIR",
            help="the checkpoint: an index with its safetensors shards, or model.safetensors",
        ),
    ],
    target: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="where the smaller checkpoint is written")
    ],
    inputs: Inputs,
    dynamic: Dynamic,
    numbers: Annotated[
        list[str],
        typer.Option(
            "--set",
            default_factory=list,
            show_default=False,
            metavar="FIELD=NUMBER",
            help="put this number into config.json, such as intermediate_size=768; can be repeated",
        ),
    ],
    copied: Annotated[
        list[str],
        typer.Option(
            default_factory=list,
            show_default=False,
            metavar="GLOB",
            help="copy these tensors although the model does not have them; can be repeated",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="what the plan was made of, built without weights: its class then says the factors that norms take "
            "and the numbers of config.json; see `fxprune --help`",
        ),
    ] = "",
    args: Arguments = "",
    force: Annotated[
        bool,
        typer.Option("--force", help="replace what another plan or source has written to --to"),
    ] = False,
    as_json: Json = False,
) -> None:
    """Apply a plan to a checkpoint of safetensors files, tensor by tensor.

    No whole tensor is in memory. A run that was stopped goes on where it was, and all files are verified at the end.
    """
    from fxprune.cli.source import Source, open_on_meta, parse_fields, progress, show
    from fxprune.plan import Plan
    from fxprune.shards import apply_to_shards

    read = Plan.load(plan)
    network = program = None
    if model:
        network, program = open_on_meta(Source(model, inputs, dynamic, args=args))
    with progress(f"writing {target}"):
        result = apply_to_shards(
            read,
            source,
            target,
            model=network,
            program=program,
            config=parse_fields(numbers, "--set"),
            copied=copied,
            force=force,
        )
    show(result, result.to_json(), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(
        epilog=example(
            "apply plan.json --from checkpoint --to smaller",
            "apply plan.json --from checkpoint --to smaller --model net.py:make --input 2x16:int64",
        )
    )(apply)
