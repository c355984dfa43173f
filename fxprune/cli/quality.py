"""The commands about what a network does: evaluate, recover and sensitivity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli.options import (
    Arguments,
    Batches,
    Data,
    Force,
    Json,
    LossOf,
    Model,
    Seed,
    Trust,
    Weights,
    example,
)


def evaluate(
    model: Model,
    data: Data,
    loss: LossOf = "",
    batches: Batches = None,
    weights: Weights = "",
    args: Arguments = "",
    trust: Trust = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Print the mean loss over the batches, and of a classifier the share of correct classes.

    MODEL runs in eval mode. It may be what another command wrote to --out.
    """
    from fxprune.calibration.evaluate import evaluate as run
    from fxprune.cli.data import open_data
    from fxprune.cli.source import Source, open_runnable, progress, show

    source = Source(model, weights=weights, args=args, trust=trust, seed=seed)
    network, _ = open_runnable(source)
    calibration = open_data(data, loss, batches)
    with progress(f"evaluating {model}"):
        found = run(network, calibration)
    show(found, found.to_json(), as_json=as_json)


def recover(
    model: Model,
    teacher: Annotated[str, typer.Option(metavar="MODEL", help="the original, named as MODEL is")],
    data: Data,
    steps: Annotated[int, typer.Option(min=1, max=2**31, help="steps of the optimizer")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="write the network there")],
    loss: LossOf = "",
    batches: Batches = None,
    validation: Annotated[
        str,
        typer.Option(
            metavar="CALLABLE",
            help="like --data; the distance is measured on it, and the best state is written",
        ),
    ] = "",
    lr: Annotated[float, typer.Option(help="the highest rate of AdamW")] = 1e-3,
    distance: Annotated[
        str, typer.Option(help="squared: of outputs relative to their variance; kl: of classes")
    ] = "squared",
    task_weight: Annotated[
        float, typer.Option(min=0, help="weight of the loss of --data; 0: the teacher alone")
    ] = 0.0,
    teacher_weights: Annotated[
        str, typer.Option(metavar="FILE", help="weights of the teacher, as --weights of MODEL")
    ] = "",
    teacher_args: Annotated[
        str, typer.Option(metavar="JSON", help="arguments of the teacher's class")
    ] = "",
    weights: Weights = "",
    args: Arguments = "",
    force: Force = False,
    trust: Trust = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Train a smaller network to compute what its teacher does, and write it to a directory.

    Where MODEL is a directory with the report of a pruning, it goes on into --out, with the curves of the recovery.
    """
    from dataclasses import asdict

    from fxprune.cli.data import open_data
    from fxprune.cli.source import Source, check_out, open_runnable, show
    from fxprune.io import save
    from fxprune.io.report import has_report, load_report
    from fxprune.training import recover as run

    check_out(out, force=force)
    source = Source(model, weights=weights, args=args, trust=trust, seed=seed)
    network, build = open_runnable(source)
    original = Source(teacher, weights=teacher_weights, args=teacher_args, trust=trust, seed=seed)
    from_whom, _ = open_runnable(original)
    options: dict[str, Any] = {"lr": lr, "distance": distance, "task_weight": task_weight}
    if validation:
        options["validation"] = open_data(validation, loss, batches, option="--validation")
    found = run(network, from_whom, open_data(data, loss, batches), steps, seed=seed, **options)
    report = load_report(model).with_curves(found) if has_report(model) else None
    save(found.network, out, report=report, **build)
    rows = [asdict(point) for point in found.history]
    drawn = [c.to_json() for c in found.curves()]
    show(found, {"history": rows, "curves": drawn, "out": str(out)}, as_json=as_json)


def sensitivity(
    model: Model,
    data: Data,
    loss: LossOf = "",
    batches: Batches = None,
    importance: Annotated[
        str | None, typer.Option(help="the criterion by which units go; see `fxprune prune --help`")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="draw the curves, PNG by default")
    ] = None,
    weights: Weights = "",
    args: Arguments = "",
    trust: Trust = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Print by how much the loss rises as each group loses units, and without each residual block."""
    from fxprune.cli.data import open_data
    from fxprune.cli.source import Source, open_runnable, show
    from fxprune.sensitivity import sensitivity as run

    source = Source(model, weights=weights, args=args, trust=trust, seed=seed)
    network, _ = open_runnable(source)
    calibration = open_data(data, loss, batches)
    found = run(network, calibration, importance=importance, seed=seed)
    if plot is not None:
        found.plot(plot)
    show(found, found.to_json(), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command(epilog=example("evaluate smaller --data data.py:test_loader --loss data.py:loss"))(
        evaluate
    )
    app.command(
        epilog=example(
            "recover smaller --teacher original --data data.py:loader --steps 200 --out better"
        )
    )(recover)
    app.command(
        epilog=example("sensitivity net.py:Net --weights net.pt --data data.py:loader --plot s.png")
    )(sensitivity)
