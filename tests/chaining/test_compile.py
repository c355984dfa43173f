"""torch.compile of what fxprune made, by inductor: forward and a step, with gates and observers."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.graph.gate import Gate
from fxprune.observe import Observer

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@pytest.mark.parametrize("kind", ["small", pytest.param("gated", marks=pytest.mark.slow)])
def test_compiled_forward(costly_network: Any, kind: str) -> None:
    module = costly_network.fresh(kind)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True)
    error = costly_network.error(compiled, module, (2,))
    assert error <= 1e-4


@pytest.mark.parametrize("kind", [pytest.param("small", marks=pytest.mark.slow), "gated"])
def test_compiled_step(costly_network: Any, kind: str) -> None:
    module = costly_network.fresh(kind).train()
    twin = copy.deepcopy(module)
    torch.compiler.reset()
    compiled = torch.compile(twin, fullgraph=True)
    # Samples are compared: inductor then draws them as eager torch does.
    with torch._inductor.config.patch(fallback_random=True):
        runs = [_step(module, module, costly_network), _step(compiled, twin, costly_network)]
    error = max(_difference(a, b) for a, b in zip(*runs, strict=True))
    assert error <= 1e-4


def _step(run: Any, module: nn.Module, network: Any) -> list[torch.Tensor]:
    """The loss, and parameters, samples and counts after a step of SGD."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    loss = run(network.batch(8)).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    optimizer.step()
    leaves = [m for m in module.modules() if isinstance(m, Gate | Observer)]
    return [loss, *module.parameters(), *(b for leaf in leaves for b in leaf.buffers())]


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / max(1.0, float(a.detach().abs().max())))
