"""ONNX of what fxprune made, run by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim


@pytest.mark.parametrize("kind", ["small", "gated"])
def test_onnxruntime_computes_the_same(network: Any, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module, path = network.fresh(kind), tmp_path / "small.onnx"
    torch.onnx.export(
        module, network.args, path, dynamo=True, dynamic_shapes=({0: Dim("batch")},), verbose=False
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())

    def run(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    error = network.error(run, module, (1, 2, 5, 7))
    assert error <= 1e-4
