"""A model without weights keeps the buffers that no checkpoint has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fxprune as fp
from fxprune.errors import OptionError, PlanError


class Rotated(nn.Module):
    """Weights of every usual way, a saved buffer, a frequency and a mask that are not saved."""

    frequencies: torch.Tensor
    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.own = nn.Parameter(torch.randn(8, 8) * 0.1)
        self.norm = nn.BatchNorm1d(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        nn.init.normal_(self.up.weight, std=0.1)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        frequencies = 1.0 / 10 ** (torch.arange(0, 8, 2).float() / 8)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("mask", torch.ones(8).cumsum(0), persistent=False)

    def forward(self, ids: Any) -> Any:
        x = self.embed(ids) @ self.own
        at = torch.arange(ids.shape[1], device=ids.device)[:, None] * self.frequencies
        x = x * torch.cat((at.cos(), at.sin()), 1) * self.mask
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.conv(self.down(self.up(x).relu()).transpose(1, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(Rotated().state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_only_buffers_that_are_not_saved_have_numbers() -> None:
    wanted = Rotated()
    model, kept = fp.without_weights(Rotated)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in wanted.state_dict().items()
    }
    assert kept.keys() == {"frequencies", "mask"}
    assert torch.equal(kept["frequencies"], wanted.frequencies)
    assert torch.equal(kept["mask"], wanted.mask)


def test_shards_open_with_what_was_kept(folder: Path) -> None:
    ids = torch.randint(20, (2, 6))
    model, kept = fp.without_weights(Rotated)
    program = fp.capture(model, ids)
    with pytest.raises(PlanError, match="frequencies"):
        fp.open_shards(program, folder)
    opened = fp.open_shards(program, folder, tensors={**kept, "of another part": torch.ones(1)})
    outcome = fp.prune(opened, keep=0.7, importance="magnitude", ignore=["embed"])
    assert all(c.ok for c in outcome.report.checks)
    assert outcome.plan.removed.size


def test_other_shapes_are_refused(folder: Path) -> None:
    model, kept = fp.without_weights(Rotated)
    program = fp.capture(model, torch.randint(20, (2, 6)))
    with pytest.raises(OptionError, match="mask"):
        fp.open_shards(program, folder, tensors={**kept, "mask": torch.ones(3)})
