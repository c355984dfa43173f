"""A checkpoint of a small language model, and checkpoints of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from fxprune.testing.checkpoints import SHARDS, Checkpoint, State, save


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """In 16 bits."""
    return Checkpoint(tmp_path_factory.mktemp("case"), torch.bfloat16)


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """In 32 bits."""
    return Checkpoint(tmp_path_factory.mktemp("exact"), torch.float32)


@pytest.fixture
def own(case: Checkpoint, tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint of one's own: tensors, and the names of its files."""

    def write(state: State | None = None, names: Sequence[str] = SHARDS) -> Path:
        folder = tmp_path / "own"
        save(case.state if state is None else state, folder, names)
        return folder

    return write
