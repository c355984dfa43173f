"""The `fxprune` command. Exit codes: 0 success, 1 a check or a pass failed, 2 invalid input."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from fxprune.cli.options import Depth, Dynamic, Inputs, Json, Model, Seed, example
from fxprune.cli.run import register

if TYPE_CHECKING:
    from torch import nn

    from fxprune.errors import FxpruneError
    from fxprune.graph.program import Program
    from fxprune.partial import Partial

HELP = """Structured pruning of PyTorch models, verified numerically.

\b
MODEL is one of
  torchvision:resnet50          a torchvision model with random weights
  timm:vit_tiny_patch16_224     a timm model with random weights
  package.module:callable       a function that returns an nn.Module
  path/to/directory             a directory written by --out or fp.save

\b
To get started:
  fxprune summary torchvision:resnet18 --depth 1
  fxprune groups torchvision:resnet18
  fxprune prune torchvision:resnet18 --keep macs=0.5 --out smaller
  fxprune summary smaller --depth 1

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


Ignore = Annotated[
    list[str],
    typer.Option(
        default_factory=list,
        show_default=False,
        metavar="GLOB",
        help="keep the outputs of modules with a matching path, such as head.*; can be repeated",
    ),
]
Parts = Annotated[
    bool,
    typer.Option(
        "--partial",
        help="capture the largest submodules that torch.export can capture, not the whole model",
    ),
]


@app.command(epilog=example("summary torchvision:resnet50 --depth 1"))
def summary(
    model: Model,
    inputs: Inputs,
    depth: Depth = None,
    partial: Parts = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Print the parameters, MACs and bytes of each module."""
    from fxprune.cli.source import open_program, show
    from fxprune.report import summary as summarise

    table = summarise(open_program(model, inputs, seed, partial=partial), depth)
    show(table, table.to_json(), as_json=as_json)


@app.command(epilog=example("groups torchvision:mobilenet_v2"))
def groups(
    model: Model,
    inputs: Inputs,
    partial: Parts = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Print the groups of units that can be removed.

    Units are channels, heads or features. The table shows for each group the axes of parameters that lose
    positions when one of its units is removed.
    """
    from fxprune.api import groups as find
    from fxprune.cli.source import open_program, show

    found = find(open_program(model, inputs, seed, partial=partial))
    data = [
        {
            "name": g.name,
            "units": len(g),
            "exact": g.exact,
            "members": [{"param": m.param, "axis": m.axis, "role": m.role} for m in g.members],
        }
        for g in found
    ]
    show(found, data, as_json=as_json)


@app.command(
    epilog=example("prune torchvision:resnet50 --keep macs=0.5 --multiple-of 8 --out smaller")
)
def prune(
    model: Model,
    inputs: Inputs,
    ignore: Ignore,
    dynamic: Dynamic,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC=SHARE",
            help="share of a metric to keep, such as macs=0.5 (the default), params=0.3 or units=0.7",
        ),
    ] = None,
    importance: Annotated[
        str,
        typer.Option(
            help="importance criterion: magnitude, l1, lamp, bn-scale, activation or random"
        ),
    ] = "magnitude",
    scope: Annotated[
        str,
        typer.Option(
            help="global: units of all groups compete; group: each group keeps the same share"
        ),
    ] = "global",
    multiple_of: Annotated[
        int, typer.Option(min=1, max=2**31, help="make the pruned axes multiples of this length")
    ] = 1,
    verify: Annotated[bool, typer.Option(help="verify the smaller model numerically")] = True,
    depth: Depth = 2,
    plan_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the pruning plan as JSON")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="write weights, plan, report and, without --partial, the graph"
        ),
    ] = None,
    partial: Parts = False,
    fits_class: Annotated[
        bool,
        typer.Option(
            "--fits-class",
            help="remove only what the model's own class can express: fp.write_back then works with the plan",
        ),
    ] = False,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=NUMBER",
            help="prune to a config with this number in it, such as hidden_size=1536; can be repeated; without --keep",
        ),
    ] = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Prune a model to a share of its MACs or parameters, or to a wished config.

    The units with the lowest importance are removed, and the smaller model is verified. Use --out to save it.
    """
    from fxprune.api import prune as run
    from fxprune.cli.source import (
        open_fitting,
        open_source,
        parse_fields,
        parse_keep,
        progress,
        show,
    )
    from fxprune.cost import Metric
    from fxprune.io import save

    metric, share = parse_keep(keep or "macs=0.5")
    source: Program | Partial
    network: nn.Module | None = None
    if fits_class or to:
        source, network = open_fitting(model, inputs, seed, partial=partial, dynamic=dynamic)
    else:
        source = open_source(model, inputs, seed, partial=partial, dynamic=dynamic)
    aim = ", ".join(to) if to else f"{share:g} of its {metric}"
    with progress(f"pruning {model} to {aim}"):
        outcome = run(
            source,
            keep=share if keep or not to else None,
            metric=cast(Metric, metric),
            importance=importance,
            scope=cast(Literal["global", "group"], scope),
            ignore=tuple(ignore),
            multiple_of=multiple_of,
            verify=verify,
            seed=seed,
            fits=network,
            to=parse_fields(to) if to else None,
        )
    if plan_out is not None:
        outcome.plan.save(plan_out)
    if out is not None:
        with progress(f"writing {out}"):
            save(outcome, out)
    show(outcome.report.text(depth), outcome.report.to_json(), as_json=as_json)


@app.command(epilog=example("explain torchvision:resnet18 layer1.0.conv1.weight 0"))
def explain(
    model: Model,
    param: Annotated[
        str,
        typer.Argument(metavar="PARAM", help="name of a parameter or buffer, as in state_dict()"),
    ],
    inputs: Inputs,
    axis: Annotated[
        int, typer.Argument(metavar="AXIS", help="number of the axis of that tensor")
    ] = 0,
    partial: Parts = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Explain which axes are pruned with an axis, or why it stays."""
    from fxprune.api import explain as run
    from fxprune.cli.source import open_program, show

    found = run(open_program(model, inputs, seed, partial=partial), param, axis)
    show(found, asdict(found), as_json=as_json)


@app.command(epilog=example("verify torchvision:resnet18 --plan plan.json"))
def verify(
    model: Model,
    plan: Annotated[
        Path, typer.Option(metavar="FILE", help="a plan written by --plan-out or plan.save")
    ],
    inputs: Inputs,
    partial: Parts = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Apply a pruning plan and verify the smaller model.

    Its outputs are compared with those of the silenced original, in which the removed units are set to zero
    wherever they are read. The exit code is 1 if they differ.
    """
    from fxprune.api import shrink
    from fxprune.api import verify as run
    from fxprune.cli.source import open_source, progress, show
    from fxprune.partial import Partial
    from fxprune.plan import Plan, check_plan

    read = Plan.load(plan)
    source = open_source(model, inputs, seed, partial=partial)
    with progress("verifying"):
        if isinstance(source, Partial):
            check = source.verify(read, seed=seed)
        else:
            checked = check_plan(source, read)
            check = run(source, checked, shrink(source, checked), seed=seed)
    show(check, asdict(check), as_json=as_json)
    raise typer.Exit(0 if check.ok else 1)


register(app)


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
