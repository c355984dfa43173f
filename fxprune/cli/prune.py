"""The commands that remove units: prune and verify."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from fxprune.cli.options import (
    Arguments,
    Batches,
    Data,
    Depth,
    Dynamic,
    Folder,
    Force,
    How,
    Inputs,
    Json,
    LossOf,
    Model,
    Parts,
    Seed,
    Trust,
    Weights,
    example,
)

if TYPE_CHECKING:
    from torch import nn

    from fxprune.cli.source import Opened
    from fxprune.graph.program import Program
    from fxprune.partial import Partial
    from fxprune.report import Outcome

Ignore = Annotated[
    list[str],
    typer.Option(
        default_factory=list,
        show_default=False,
        metavar="GLOB",
        help="keep the outputs of modules with a matching path, such as head.*; can be repeated",
    ),
]


def prune(
    model: Model,
    inputs: Inputs,
    ignore: Ignore,
    dynamic: Dynamic,
    keep: Annotated[
        list[str],
        typer.Option(
            default_factory=list,
            show_default=False,
            metavar="METRIC=SHARE",
            help="share of a metric to keep, such as macs=0.5 (the default), params=0.3, units=0.7 or "
            "latency=0.5, which is measured on this machine; or the share of units that some modules keep, such as "
            "layer3.*=0.8, which can be repeated, each for what none before it names",
        ),
    ],
    importance: Annotated[
        str | None,
        typer.Option(
            help="importance criterion: magnitude, l1, lamp, bn-scale, random, or with --data activation, wanda, "
            "gauss-newton, taylor or fisher; without it, the best for the data there is"
        ),
    ] = None,
    data: Data = "",
    loss: LossOf = "",
    batches: Batches = None,
    scope: Annotated[
        str,
        typer.Option(
            help="global: units of all groups compete; group: each group keeps the same share"
        ),
    ] = "global",
    multiple_of: Annotated[
        int, typer.Option(min=1, max=2**31, help="make the pruned axes multiples of this length")
    ] = 1,
    verify: How = "local",
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="do not compare the smaller model with the original")
    ] = False,
    depth: Depth = 2,
    plan_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the pruning plan as JSON")
    ] = None,
    out: Folder = None,
    force: Force = False,
    own_class: Annotated[
        bool,
        typer.Option(
            "--class",
            help="write a model of MODEL's own class to --out, for fp.load_model, instead of a graph; what the class "
            "cannot express stays",
        ),
    ] = False,
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
    weights: Weights = "",
    shards: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="leave the weights in a checkpoint of safetensors files, and read them tensor by tensor; "
            "--plan-out then writes what fxprune apply reads",
        ),
    ] = None,
    args: Arguments = "",
    partial: Parts = False,
    trust: Trust = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Prune a model to a share of its MACs, parameters or latency, or to a wished config.

    The units with the lowest importance are removed, and the smaller model is verified. Use --out to save it: weights,
    plan, report and, without --partial and --class, the graph.
    """
    from fxprune.api import prune as run
    from fxprune.cli.data import open_optional
    from fxprune.cli.source import (
        Source,
        check_out,
        open_fitting,
        open_on_meta,
        open_source,
        parse_fields,
        parse_keep,
        progress,
        show,
    )
    from fxprune.cost import Metric

    metric, share = parse_keep(keep or ["macs=0.5"])
    _check_class(out, own_class=own_class)
    check_out(out, force=force)
    source = Source(model, inputs, dynamic, weights, args, partial, trust, seed)
    opened: Opened | None = None
    fits: nn.Module | None = None
    program: Program | Partial
    if shards is not None:
        _check_shards(plan_out, {"--out": out, "--weights": weights, "--partial": partial})
        network, program = open_on_meta(source, shards)
        fits = network if fits_class or to else None
    elif own_class or fits_class or to:
        option = "--class" if own_class else "--to" if to else "--fits-class"
        program, opened = open_fitting(source, option)
        fits = opened.network
    else:
        program = open_source(source, matters=True)
    calibration = open_optional(data, loss, batches)
    aim = ", ".join(to or keep) or f"{share:g} of its {metric}"
    with progress(f"pruning {model} to {aim}"):
        outcome = run(
            program,
            keep=share if keep or not to else None,
            metric=cast(Metric, metric),
            importance=importance,
            data=calibration,
            scope=cast(Literal["global", "group"], scope),
            ignore=tuple(ignore),
            multiple_of=multiple_of,
            verify=False if no_verify else verify,
            seed=seed,
            fits=fits,
            to=parse_fields(to) if to else None,
        )
    if plan_out is not None:
        outcome.plan.save(plan_out)
    if out is not None:
        _write(outcome, out, opened if own_class else None)
    _warn(outcome)
    show(outcome.report.text(depth), outcome.report.to_json(), as_json=as_json)


def _check_shards(plan_out: Path | None, others: Mapping[str, object]) -> None:
    """Refuses options that need the weights in memory, and a result that nothing keeps."""
    from fxprune.errors import OptionError

    given = [name for name, value in others.items() if value]
    if given:
        raise OptionError(
            f"{given[0]} needs the weights in memory",
            where="--from",
            do="write the plan, --plan-out FILE, and the smaller weights with: "
            "fxprune apply FILE --from DIR --to DIR",
        )
    if plan_out is None:
        raise OptionError(
            "nothing would be kept of what is decided", where="--from", do="add --plan-out FILE"
        )


def _warn(outcome: Outcome) -> None:
    """Says on standard error where scores rest on noise."""
    for remark in outcome.remarks:
        if remark.code == "score.no-data":
            print(f"warning: {remark.what}\n  do    add --data", file=sys.stderr)


def _check_class(out: Path | None, *, own_class: bool) -> None:
    from fxprune.errors import OptionError

    if own_class and out is None:
        raise OptionError(
            "there is no directory to write the class's model to",
            where="--class",
            do="add --out DIR; to prune so that fp.write_back works, --fits-class",
        )


def _write(outcome: Outcome, out: Path, opened: Opened | None) -> None:
    """Writes the graph; or the model of its own class, and how to build it."""
    from fxprune.cli.source import progress
    from fxprune.io import save

    with progress(f"writing {out}"):
        if opened is None:
            save(replace(outcome, written=None), out)
        else:
            save(outcome, out, **opened.build)


def verify(
    model: Model,
    plan: Annotated[
        Path, typer.Option(metavar="FILE", help="a plan written by --plan-out or plan.save")
    ],
    inputs: Inputs,
    dynamic: Dynamic,
    weights: Weights = "",
    args: Arguments = "",
    partial: Parts = False,
    trust: Trust = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Apply a pruning plan and verify the smaller model.

    Its outputs are compared with those of the silenced original, in which the removed units are set to zero
    wherever they are read. The exit code is 1 if they differ.
    """
    from fxprune.api import shrink
    from fxprune.api import verify as run
    from fxprune.cli.source import Source, open_source, progress, show
    from fxprune.partial import Partial
    from fxprune.plan import Plan, check_plan

    read = Plan.load(plan)
    source = open_source(Source(model, inputs, dynamic, weights, args, partial, trust, seed))
    with progress("verifying"):
        if isinstance(source, Partial):
            check = source.verify(read, seed=seed)
        else:
            checked = check_plan(source, read)
            check = run(source, checked, shrink(source, checked), seed=seed)
    show(check, asdict(check), as_json=as_json)
    raise typer.Exit(0 if check.ok else 1)


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command(
        epilog=example(
            "prune torchvision:resnet50 --weights DEFAULT --keep macs=0.5 --multiple-of 8 --out smaller",
            "prune net.py:Net --weights net.safetensors --input 2x3x32x32 --class --out smaller",
            "prune net.py:Net --from checkpoint --input 2x8:int64 --data data.py:loader --plan-out plan.json",
        )
    )(prune)
    app.command(epilog=example("verify torchvision:resnet18 --plan plan.json"))(verify)
