"""Two gloo processes by torchrun."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxprune.testing.processes import run_group

SCRIPT = Path(__file__).with_name("distributed_run.py")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_decide_alike() -> None:
    assert "agreed" in run_group(SCRIPT)
