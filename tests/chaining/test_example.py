"""examples/chain.py, on a small network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

EXAMPLE = Path(__file__).parents[2] / "examples" / "chain.py"


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are in the checkout only")
def test_the_example_runs(residual: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    spec = importlib.util.spec_from_file_location("chain", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    path = example.chain(residual, torch.randn(2, 3, 8, 8), "two", tmp_path)
    assert path.stat().st_size > 0
