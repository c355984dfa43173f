"""The command that hands a program to other tools: export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import typer

from fxprune.cli.options import (
    Arguments,
    Dynamic,
    Inputs,
    Json,
    Model,
    Seed,
    Trust,
    Weights,
    example,
)

ENDINGS = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2"}


def export(
    model: Model,
    inputs: Inputs,
    dynamic: Dynamic,
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="onnx; pt2: of torch.export.save; aoti: a package of AOTInductor, which needs a C++ compiler",
        ),
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="the file to write; by default named after MODEL"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace the file where it is there already")
    ] = False,
    weights: Weights = "",
    args: Arguments = "",
    trust: Trust = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Export a saved directory, or another MODEL, for other tools.

    What was written is loaded and run on random inputs, with a second batch size where the batch is free, and compared
    with the program. The file appears only if they agree; the exit code is 1 if they do not.
    """
    from fxprune.cli.artefact import Format, check_artefact, check_tools, write_artefact
    from fxprune.cli.source import Source, check_file, open_program, progress, show
    from fxprune.errors import OptionError
    from fxprune.files.staging import staged

    if kind not in ENDINGS:
        raise OptionError(
            f"{kind[:40]!r} is no format", where="--format", do=f"it is one of {', '.join(ENDINGS)}"
        )
    chosen = cast(Format, kind)
    target = out if out is not None else Path(_name(model) + ENDINGS[kind])
    check_file(target, ENDINGS[kind], force=force)
    check_tools(chosen)
    source = Source(model, inputs, dynamic, weights, args, trust=trust, seed=seed)
    program = open_program(source, matters=True)
    with staged(target.parent) as folder:
        with progress(f"exporting {model} to {kind}"):
            write_artefact(program, chosen, folder / target.name)
        with progress(f"running {target.name}"):
            check = check_artefact(program, chosen, folder / target.name, seed)
        if check.ok:
            for file in folder.iterdir():  # large weights are in a second one
                file.replace(target.parent / file.name)
    what = f"wrote {target}" if check.ok else f"{target} was not written"
    show(f"{what}\n{check}", {"file": str(target), **asdict(check)}, as_json=as_json)
    raise typer.Exit(0 if check.ok else 1)


def _name(model: str) -> str:
    """The name of a file for what a model's name says last."""
    return Path(model.rpartition(":")[2] or model).name or "model"


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(
        epilog=example(
            "export smaller --format onnx --out smaller.onnx",
            "export smaller --format pt2 --out smaller.pt2",
        )
    )(export)
