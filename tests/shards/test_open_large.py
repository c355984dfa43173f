"""A Llama of 1.1 billion parameters loses layers and width by calibration, from shards on disk, in a bounded memory."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOG = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_llama_is_pruned_from_shards_in_four_gigabytes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.large_shards", str(tmp_path / "llama")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    LOG.info(done.stdout)
    row = json.loads(done.stdout.splitlines()[-1])
    whole, short, small = row["bytes"]
    assert whole > 2.1e9
    assert whole > short > small
    assert row["peak"] < 4e9
    assert row["MACs left"] == pytest.approx(0.8, abs=0.01)
