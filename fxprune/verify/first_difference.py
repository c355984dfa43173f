"""The first node of a program whose value differs between two runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from fxprune.graph.evaluate import Evaluator
from fxprune.verify.check import relative_error, run_batch
from fxprune.verify.inputs import Batch

Expected = Callable[[fx.Node, torch.Tensor], torch.Tensor | None]
NO_NODE = "none but the outputs"
"""What a check says where no node differs."""


def first_difference(
    nodes: Iterable[fx.Node],
    wanted: Evaluator,
    found: Evaluator,
    batch: Batch,
    expected: Expected,
    *,
    tolerance: float,
    seed: int,
) -> fx.Node | None:
    """Runs both and compares the values of the nodes that have the same name in both.

    Args:
        nodes: which nodes to compare, in order.
        wanted: runs the program that is right.
        found: runs the program that should compute the same.
        batch: the inputs.
        expected: from a node and its value in the first run to the value that it should have in the second;
            None where the two cannot be compared.
        tolerance: largest relative error allowed.
        seed: of random operators.

    Returns:
        The node; None where only the outputs differ.
    """
    before, after = (_values(runner, batch, seed) for runner in (wanted, found))
    for node in nodes:
        a, b = before.get(node.name), after.get(node.name)
        if node.op == "output" or not isinstance(a, torch.Tensor) or b is None:
            continue
        value = expected(node, a)
        if value is not None and relative_error(b, value) > tolerance:
            return node
    return None


def _values(runner: Evaluator, batch: Batch, seed: int) -> dict[str, Any]:
    """The value of each node, by name."""
    found: dict[str, Any] = {}

    def note(node: fx.Node, value: Any) -> None:
        found[node.name] = value

    runner.observe = note
    run_batch(runner.evaluate, batch, seed)
    return found
