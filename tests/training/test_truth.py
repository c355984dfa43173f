"""Training with silenced units or blocks, and training after they were removed: the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.shrink.tensors import slice_axes
from fxprune.testing.training import (
    INSIDE,
    OPTIMIZERS,
    ConvNet,
    capture,
    make_batches,
    make_model,
    train,
    weights,
)
from fxprune.training.correspondence import Correspondence, correspond

STEPS = 20


def close(program: Program, units: bool) -> dict[str, tuple[int, list[int]]]:
    """Closes some gates; the positions by the names of their thetas."""
    closed = {}
    for number, (path, gate) in enumerate(gates(program).items()):
        if units:
            positions = list(range(number % 2, gate.theta.numel(), 3))
            with torch.no_grad():
                gate.theta[positions] = 0
            closed[f"{path}.theta"] = (0, positions)
        elif number == 0:
            gate.set(0.0)
    return closed


def assert_follows(masked: Program, small: Program, tensors: Correspondence) -> None:
    """The small program's tensors are what the plan keeps of the masked program's."""
    full = masked.tensors()
    for name, tensor in small.tensors().items():
        if not name.endswith(("theta", "sample")):
            expected = slice_axes(full[name].detach(), tensors.cut(name))
            torch.testing.assert_close(tensor.detach(), expected, rtol=1e-9, atol=1e-9)


def start(kind: type[nn.Module], text: str, name: str) -> tuple[Program, torch.optim.Optimizer]:
    """A gated network after three steps."""
    program = capture(make_model(kind), text)
    optimizer = OPTIMIZERS[name](weights(program))
    train(program.module, optimizer, make_batches(kind, 3))
    return program, optimizer


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("how", ["plan", "pipeline"])
def test_units(kind: type[nn.Module], name: str, how: str) -> None:
    text = f"insert-gates{{scope=unit where={INSIDE[kind]}}}"
    masked, slow = start(kind, text, name)
    gated, fast = start(kind, text, name)
    close(masked, units=True)
    shrinker = fp.training.Shrinker(gated, fast)
    if how == "plan":
        change = shrinker.apply(fp.plan(gated, close(gated, units=True)), verify=True)
    else:
        close(gated, units=True)
        change = shrinker.run("delete-gated")
        assert not gates(shrinker.program)
    batches = make_batches(kind, STEPS, seed=2)
    expected, found = train(masked.module, slow, batches), train(shrinker.module, fast, batches)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert_follows(masked, shrinker.program, correspond(gated, shrinker.program, change.plans))
    sizes = [sum(p.numel() for p in weights(p)) for p in (masked, shrinker.program)]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_blocks(name: str) -> None:
    masked, slow = start(ConvNet, "insert-gates", name)
    gated, fast = start(ConvNet, "insert-gates", name)
    close(masked, units=False)
    close(gated, units=False)
    shrinker = fp.training.Shrinker(gated, fast)
    change = shrinker.run("delete-gated")
    assert set(change.left) == {
        n
        for n, p in gated.module.named_parameters()
        if n.startswith("blocks.0") and p.requires_grad
    }
    batches = make_batches(ConvNet, STEPS, seed=2)
    expected, found = train(masked.module, slow, batches), train(shrinker.module, fast, batches)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert_follows(masked, shrinker.program, correspond(gated, shrinker.program, change.plans))


def test_shrinking_again_and_again() -> None:
    masked, slow = start(ConvNet, "insert-gates{scope=unit where=blocks.*}", "adamw")
    gated, fast = start(ConvNet, "insert-gates{scope=unit where=blocks.*}", "adamw")
    shrinker = fp.training.Shrinker(gated, fast)
    left = {path: list(range(g.theta.numel())) for path, g in gates(masked).items()}
    batches = make_batches(ConvNet, STEPS, seed=2)
    for turn in range(4):
        path = list(left)[turn % 2]
        gone = left[path].pop(turn % 3)
        with torch.no_grad():
            gates(masked)[path].theta[gone] = 0
        shrinker.apply(fp.plan(shrinker.program, {f"{path}.theta": (0, [turn % 3])}))
        part = batches[turn * 5 : turn * 5 + 5]
        expected, found = train(masked.module, slow, part), train(shrinker.module, fast, part)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
