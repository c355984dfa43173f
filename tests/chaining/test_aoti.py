"""AOTInductor: a shared library of what fxprune made, run without Python code of the network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler"
)


@pytest.mark.parametrize("kind", ["small", pytest.param("gated", marks=pytest.mark.slow)])
def test_a_package_computes_the_same(costly_network: Any, kind: str, tmp_path: Path) -> None:
    module = costly_network.fresh(kind)
    with torch.no_grad():
        exported = torch.export.export(
            module, costly_network.args, dynamic_shapes=({0: Dim("batch", max=64)},)
        )
        path = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(tmp_path / "small.pt2")
        )
    loaded = torch._inductor.aoti_load_package(path)
    error = costly_network.error(loaded, module)
    assert error <= 1e-4
