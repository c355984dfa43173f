"""torch.export of what fxprune made: saved, loaded, run at other batch sizes, pruned again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim, ExportedProgram

import fxprune as fp


@pytest.mark.parametrize("kind", ["small", "gated"])
def test_a_reloaded_export_computes_the_same_and_is_pruned_again(
    network: Any, kind: str, tmp_path: Path
) -> None:
    module = network.fresh(kind)
    loaded = _saved_and_loaded(module, network.args, tmp_path / "small.pt2")
    error = network.error(loaded.module(), module, (1, 2, 5, 7))
    assert error <= 1e-6
    assert set(loaded.state_dict) == set(module.state_dict())
    if kind == "gated":
        return
    again = fp.prune(loaded, network.args, keep=0.7)
    wanted = fp.prune(network.small, keep=0.7)
    assert again.program.free_batch
    assert {n: t.shape for n, t in again.program.tensors().items()} == {
        n: t.shape for n, t in wanted.program.tensors().items()
    }
    assert network.error(again.program, wanted.program) <= 1e-6


def _saved_and_loaded(module: torch.nn.Module, args: Any, path: Path) -> ExportedProgram:
    exported = torch.export.export(module, args, dynamic_shapes=({0: Dim("batch")},))
    torch.export.save(exported, path)
    return torch.export.load(path)
