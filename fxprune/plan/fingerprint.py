"""A hash that identifies the program for which a plan was made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import fx

from fxprune.graph.mode import is_counter, without_mode
from fxprune.graph.program import Program
from fxprune.graph.sizes import Sizes


def fingerprint(program: Program) -> str:
    """Returns a hash of the graph's operators and of the names, shapes and types of its tensors.

    Weights and the train or eval mode do not affect the hash. Neither does the way in which a length is
    computed, because torch.export may write it differently when a program is saved.
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
    """Returns the value of each node that computes a length, with a number of its own for every symbol."""
    sizes = Sizes.of_inputs(program.input_values())
    return {
        n: f"~{sizes.number(n.meta['val'])}"
        for n in nodes
        if n.op == "call_function" and isinstance(n.meta.get("val"), torch.SymInt)
    }
