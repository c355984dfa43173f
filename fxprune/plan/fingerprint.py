"""A hash that says which program a plan was made for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import fx

from fxprune.graph.mode import is_counter, without_mode
from fxprune.graph.program import Program
from fxprune.graph.sizes import Sizes


def fingerprint(program: Program) -> str:
    """A hash of the graph's operators and of the names, shapes and types of its tensors.

    Neither weights nor train or eval mode count, nor how a length is computed: torch.export spells that
    anew when a program is saved.
    """
    nodes = [node for node in program.nodes if not is_counter(node)]
    lengths = _computed_lengths(program, nodes)
    others = [node for node in nodes if node not in lengths]
    numbers = lengths | {node: f"%{i}" for i, node in enumerate(others)}
    lines = [
        f"{n.op} {n.target} {fx.map_arg(without_mode(n), lambda m: numbers[m])}" for n in others
    ]
    lines += [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in program.tensors().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _computed_lengths(program: Program, nodes: Iterable[fx.Node]) -> dict[fx.Node, str]:
    """The value of each node that computes a length, with the numbers of the analysis for the symbols."""
    sizes = Sizes.of_inputs(program.input_values())
    return {
        n: f"~{sizes.number(n.meta['val'])}"
        for n in nodes
        if n.op == "call_function" and isinstance(n.meta.get("val"), torch.SymInt)
    }
