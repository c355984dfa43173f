"""Finds the gates at 0 and the units or branches that they switch off."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import torch

from fxprune.analysis.axes import Axes
from fxprune.graph.gate import Gate, gate_nodes, gates
from fxprune.graph.program import Program
from fxprune.pipeline import Branch, Context, Unit

ALL = ("*",)


def find_closed(
    program: Program, ctx: Context, where: tuple[str, ...] = ALL
) -> dict[str, Branch | list[Unit]]:
    """The branch or the units behind each gate at 0, by the path of the gate; remarks on units that must stay.

    Args:
        program: a program with gates.
        ctx: receives the remarks.
        where: globs of the paths of the gates to consider.
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
                ctx.missed(
                    places[path][0], f"units gated by {path} stay", reason, code="units-stay"
                )
            if units:
                found[path] = units
    return found


def gates_under(program: Program, where: tuple[str, ...]) -> dict[str, Gate]:
    """The gates whose paths match at least one of the globs."""
    return {p: g for p, g in gates(program).items() if any(fnmatchcase(p, w) for w in where)}


def closed_units(axes: Axes, path: str, closed: torch.Tensor) -> tuple[list[Unit], str]:
    """The units of the closed gates of a module, and why some of them must stay ("" if none must).

    Args:
        axes: the solved labels of the program.
        path: the path of the gate module.
        closed: which of its gates are closed, `[size]` booleans.
    """
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
        return [], f"{int(open_too.sum())} units whose gates are open would be removed with them"
    stays = int((~lost[positions]).sum())
    return sorted(units - {0}), f"{stays} of them lie on a frozen axis" if stays else ""
