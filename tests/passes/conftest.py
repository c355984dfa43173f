"""What the tests of rewrites share: exact comparison, counting, random layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.pipeline import Result, run_pipeline

Rewritten = Callable[..., Result]


@pytest.fixture(scope="session")
def rewritten() -> Rewritten:
    """Captures a model in float64, runs a pipeline, and checks all that every rewrite must keep."""
    return _rewritten


def _rewritten(
    model: nn.Module,
    example: Any,
    steps: str,
    *,
    train: bool = False,
    tolerance: float = 1e-10,
    sizes: str | None = None,
) -> Result:
    model.train(train)
    args = example if isinstance(example, tuple) else (example,)
    program = fp.capture(model, args, dynamic_shapes=sizes)
    state = {name: t.detach().clone() for name, t in program.tensors().items()}
    code = program.module.code
    result = run_pipeline(program, steps)
    assert program.module.code == code
    assert all(torch.equal(t, state[name]) for name, t in program.tensors().items())
    if not train:
        _agree(program, result.program, args, tolerance)
    again = run_pipeline(result.program, steps)
    assert again.program is result.program
    _described(result.program)
    return result


def _agree(before: Program, after: Program, args: tuple[Any, ...], tolerance: float) -> None:
    with torch.no_grad():
        for a, b in zip(_flat(before(*args)), _flat(after(*args)), strict=True):
            torch.testing.assert_close(
                b, a, rtol=tolerance, atol=tolerance * (float(a.abs().max()) + 1)
            )


def _flat(value: Any) -> list[torch.Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]


def _described(program: Program) -> None:
    for node in program.nodes:
        if node.op == "call_function":
            assert "val" in node.meta, node
