"""The commands for passes: run, replay and passes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli.options import (
    Arguments,
    Depth,
    Dynamic,
    Folder,
    Force,
    How,
    Inputs,
    Json,
    Model,
    Seed,
    Trust,
    Weights,
    example,
)

Names = Annotated[
    list[str],
    typer.Option(
        "--disable",
        default_factory=list,
        show_default=False,
        metavar="NAME",
        help="skip the passes with a matching name (glob); can be repeated",
    ),
]
Glob = Annotated[
    str, typer.Option(metavar="GLOB", help="print the graph at passes with a matching name")
]
Text = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE", help='the passes, such as "drop-identity | repeat{max=4}(dead-code)"'
    ),
]


def run(
    model: Model,
    pipeline: Text,
    inputs: Inputs,
    disable: Names,
    dynamic: Dynamic,
    print_before: Glob = "",
    print_after: Glob = "",
    print_changed: Annotated[
        bool, typer.Option("--print-changed", help="print what each pass changes")
    ] = False,
    time_passes: Annotated[
        bool, typer.Option("--time-passes", help="print the time and memory of each pass")
    ] = False,
    verify: How = "local",
    no_verify_each: Annotated[
        bool, typer.Option("--no-verify-each", help="do not compare what passes make")
    ] = False,
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect", help="find the pass, and its single rewrite, that breaks the model"
        ),
    ] = False,
    check: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="with --bisect: a function that returns whether a program is right",
        ),
    ] = "",
    limit: Annotated[
        int | None, typer.Option(min=0, help="apply at most this number of single rewrites")
    ] = None,
    remarks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write all remarks as JSON lines")
    ] = None,
    reproducer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="if a pass fails, write what is needed to replay the failure"
        ),
    ] = None,
    out: Folder = None,
    force: Force = False,
    depth: Depth = 1,
    weights: Weights = "",
    args: Arguments = "",
    trust: Trust = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Run a pipeline of passes on a model.

    Each pass is verified. The command prints the sizes before and after, the passes and their remarks.
    """
    from fxprune import api
    from fxprune.cli.source import Source, check_out, open_program, progress, show
    from fxprune.pipeline import Pipeline
    from fxprune.plugins import trusting

    steps = Pipeline.parse(pipeline)
    check_out(out, force=force)
    program = open_program(
        Source(model, inputs, dynamic, weights, args, trust=trust, seed=seed), matters=True
    )
    if bisect:
        with progress(f"bisecting {pipeline}"), trusting(trust):
            found = api.bisect(program, steps, _predicate(check), seed)
        show(found, found.to_json(), as_json=as_json)
        raise typer.Exit(1 if found.found else 0)
    with trusting(trust):
        result = api.run(
            program,
            None,
            steps,
            verify=False if no_verify_each else verify,
            instruments=_instruments(
                print_before, print_after, print_changed, time_passes, reproducer
            ),
            disable=disable,
            limit=limit,
            seed=seed,
        )
    _write(result, remarks, out)
    show(_text(result, depth), result.to_json(), as_json=as_json)


def replay(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="a directory written by --reproducer")
    ],
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Replay a failure that --reproducer recorded.

    The exit code is 1 if it fails again.
    """
    from fxprune.api import replay as again
    from fxprune.cli.source import look_here, progress, show

    look_here()
    with progress(f"replaying {directory}"):
        result = again(directory, trust=trust)
    print("the failure did not occur again", file=sys.stderr)
    show(result, result.to_json(), as_json=as_json)


def passes(as_json: Json = False) -> None:
    """List the installed passes and their options."""
    from tabulate import tabulate

    from fxprune.cli.source import show
    from fxprune.pipeline.registry import installed

    found = [asdict(p) for p in installed()]
    show(tabulate(found, headers="keys", tablefmt="simple"), found, as_json=as_json)


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    words = 'torchvision:resnet18 "drop-identity | dead-code" --print-changed --time-passes'
    app.command(epilog=example(f"run {words}"))(run)
    app.command(epilog=example("replay failed"))(replay)
    app.command()(passes)


def _instruments(
    before: str, after: str, changed: bool, timed: bool, folder: Path | None
) -> list[Any]:
    from fxprune.instruments import PrintGraph, Reproducer, TimePasses

    found: list[Any] = []
    if before or after or changed:
        found.append(PrintGraph(before, after, changed=changed))
    if timed:
        found.append(TimePasses())
    if folder is not None:
        found.append(Reproducer(folder))
    return found


def _predicate(text: str) -> Any:
    """Returns the function that `package.module:function` names, or None for an empty text."""
    from importlib import import_module

    from fxprune.errors import OptionError

    if not text:
        return None
    module, _, name = text.partition(":")
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # a module of the user's: anything may come
        raise OptionError(
            f"there is no function {text}",
            where="--check",
            why=f"{type(error).__name__}: {error}",
            do="write --check package.module:function",
        ) from error


def _write(result: Any, remarks: Path | None, out: Path | None) -> None:
    from fxprune.cli.source import progress
    from fxprune.io import save
    from fxprune.pipeline.remarks import write_remarks

    if remarks is not None:
        write_remarks(result.remarks, remarks)
    if out is not None:
        with progress(f"writing {out}"):
            save(result.program, out)


def _text(result: Any, depth: int | None) -> str:
    """Formats a result: sizes by module, passes, counts of remarks, and the remarks on what was not done."""
    from fxprune.pipeline.remarks import count_remarks, grouped
    from fxprune.report import compare

    left: Sequence[Any] = [r for r in result.remarks if r.kind != "applied"]
    parts = (
        str(compare(result.original, result.program, depth)),
        result.table(),
        count_remarks(result.remarks),
        grouped(left),
    )
    return "\n\n".join(filter(None, parts))
