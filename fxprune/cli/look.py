"""The commands that look at a model: summary, groups and explain."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fxprune.cli.options import (
    Arguments,
    Depth,
    Dynamic,
    Inputs,
    Json,
    Model,
    Parts,
    Seed,
    Trust,
    Weights,
    example,
)


def summary(
    model: Model,
    inputs: Inputs,
    dynamic: Dynamic,
    depth: Depth = None,
    weights: Weights = "",
    args: Arguments = "",
    partial: Parts = False,
    trust: Trust = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Print the parameters, MACs and bytes of each module."""
    from fxprune.cli.source import Source, open_program, show
    from fxprune.report import summary as summarise

    source = Source(model, inputs, dynamic, weights, args, partial, trust, seed)
    table = summarise(open_program(source), depth)
    show(table, table.to_json(), as_json=as_json)


def groups(
    model: Model,
    inputs: Inputs,
    dynamic: Dynamic,
    weights: Weights = "",
    args: Arguments = "",
    partial: Parts = False,
    trust: Trust = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Print the groups of units that can be removed.

    Units are channels, heads or features. The table shows for each group the axes of parameters that lose
    positions when one of its units is removed.
    """
    from fxprune.api import groups as find
    from fxprune.cli.source import Source, open_program, show

    source = Source(model, inputs, dynamic, weights, args, partial, trust, seed)
    found = find(open_program(source))
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


def explain(
    model: Model,
    param: Annotated[
        str,
        typer.Argument(metavar="PARAM", help="name of a parameter or buffer, as in state_dict()"),
    ],
    inputs: Inputs,
    dynamic: Dynamic,
    axis: Annotated[
        int, typer.Argument(metavar="AXIS", help="number of the axis of that tensor")
    ] = 0,
    weights: Weights = "",
    args: Arguments = "",
    partial: Parts = False,
    trust: Trust = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Explain which axes are pruned with an axis, or why it stays."""
    from fxprune.api import explain as run
    from fxprune.cli.source import Source, open_program, show

    source = Source(model, inputs, dynamic, weights, args, partial, trust, seed)
    found = run(open_program(source), param, axis)
    show(found, asdict(found), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    own = "summary net.py:Net --args '{\"width\": 8}' --input 2x3x32x32"
    app.command(epilog=example("summary torchvision:resnet50 --depth 1", own))(summary)
    app.command(epilog=example("groups torchvision:mobilenet_v2"))(groups)
    app.command(epilog=example("explain torchvision:resnet18 layer1.0.conv1.weight 0"))(explain)
