"""Decides by gates: what is at 0 goes; unit gates all at 0 are a branch that goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
import torch

from fxprune.analysis.axes import Axes
from fxprune.graph.gate import Gate, gate_nodes, gates
from fxprune.graph.program import Program
from fxprune.pipeline import Branch, Context, Decision, Unit

ALL = ("*",)


@dataclass(frozen=True)
class DecideGated(Decision):
    """Takes the units and branches whose gates are at 0."""

    name: ClassVar[str] = "decide-gated"

    def decide(self, program: Program, ctx: Context) -> Iterable[Unit | Branch]:
        places = gate_nodes(program)
        for path, found in closed(program, ctx).items():
            what = f"{len(found)} unit gates of {path}" if isinstance(found, list) else path
            if ctx.allow(places[path][0], f"{what} at 0", code="decided"):
                yield from found if isinstance(found, list) else (found,)


def closed(
    program: Program, ctx: Context, where: tuple[str, ...] = ALL
) -> dict[str, Branch | list[Unit]]:
    """What the gates at 0 stand for, by their paths; a remark for each that cannot go.

    Args:
        program: the program.
        ctx: takes the remarks.
        where: globs of the paths of the gates to look at.
    """
    places = gate_nodes(program)
    found: dict[str, Branch | list[Unit]] = {}
    for path, gate in gates_under(program, where).items():
        settled = gate.settled()
        if bool((settled == 0).all()):
            found[path] = Branch(path)
        elif gate.theta.dim() and bool((settled == 0).any()):
            units, reason = closed_units(ctx.axes(program), path, (settled == 0).cpu())
            if reason:
                ctx.missed(places[path][0], f"gates of {path} stay", reason, code="units-stay")
            if units:
                found[path] = units
    return found


def gates_under(program: Program, where: tuple[str, ...]) -> dict[str, Gate]:
    """The gates whose paths match one of the globs."""
    return {p: g for p, g in gates(program).items() if any(fnmatchcase(p, w) for w in where)}


def closed_units(axes: Axes, path: str, closed: torch.Tensor) -> tuple[list[Unit], str]:
    """The units of some gates of a module, `[size]` booleans, and why others of these stay."""
    label = axes.params[f"{path}.theta"][0]
    positions = torch.nonzero(closed).flatten().numpy()
    units: set[int] = set()
    for column in label.columns:
        units |= set(np.unique(column[positions]).tolist())
    lost = np.zeros(len(label), bool)
    for column in label.columns:
        lost |= np.isin(column, list(units - {0}))
    open_too = lost & ~closed.numpy()
    if open_too.any():
        return [], f"{int(open_too.sum())} gates that are open would go with them"
    stays = int((~lost[positions]).sum())
    return sorted(units - {0}), f"{stays} are frozen" if stays else ""
