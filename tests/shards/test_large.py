"""Two gigabytes: killed in the middle, gone on with to the same bytes, in a bounded memory."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fxprune.plan.json import Cut, PlanData, to_text
from fxprune.plan.plan import KINDS
from fxprune.shards.shard import StoredTensor, header_of

LOG = logging.getLogger(__name__)
WIDTH, TALL = 8192, 32_768
LARGEST = WIDTH * TALL * 2  # 512 MiB, in 16 bits
RUN = """
import resource, sys, time
import fxprune as fp

plan = fp.Plan.load(sys.argv[1])
import fxprune.shards

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
wall, cpu = time.perf_counter(), time.process_time()
fp.apply_to_shards(plan, sys.argv[2], sys.argv[3])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(before, peak, time.process_time() - cpu, time.perf_counter() - wall)
"""


def write_model(folder: Path) -> int:
    """Four shards with a large tensor, and smaller ones; returns how many bytes there are."""
    folder.mkdir()
    rng, total = np.random.default_rng(0), 0
    places: dict[str, str] = {}
    some = rng.integers(0, 256, 1 << 24, np.uint8).tobytes()
    for i in range(4):
        name = f"model-0000{i + 1}-of-00004.safetensors"
        shapes = {f"layers.{i}.up": (TALL, WIDTH), f"layers.{i}.norm": (WIDTH,)}
        tensors = [StoredTensor(n, "BF16", s, 0, 2 * int(np.prod(s))) for n, s in shapes.items()]
        with (folder / name).open("wb") as stream:
            stream.write(header_of(tensors, {"format": "pt"}))
            for t in tensors:
                for begin in range(0, t.nbytes, len(some)):
                    stream.write(some[: t.nbytes - begin])
                total += t.nbytes
        places |= dict.fromkeys(shapes, name)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def write_plan(path: Path) -> None:
    """Every other column, and every third row, but of the last layer, which is copied."""
    columns, rows = np.arange(0, WIDTH, 2), np.flatnonzero(np.arange(TALL) % 3)
    names = [f"layers.{i}" for i in range(3)]
    kept: dict[str, Cut] = {f"{n}.up": {0: rows, 1: columns} for n in names}
    kept |= {f"{n}.norm": {0: columns} for n in names}
    lengths: dict[str, Mapping[int, int]] = {f"{n}.up": {0: TALL, 1: WIDTH} for n in names}
    lengths |= {f"{n}.norm": {0: WIDTH} for n in names}
    path.write_text(to_text(PlanData(kept, lengths, (), "a test"), KINDS))


def run(tmp_path: Path, target: Path, *, kill: bool = False) -> list[float]:
    """Applies the plan in a process of its own; kills that in its third shard."""
    words = [
        sys.executable,
        "-c",
        RUN,
        str(tmp_path / "plan.json"),
        str(tmp_path / "old"),
        str(target),
    ]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        while kill and process.poll() is None:
            begun = list(target.glob(".fxprune-*/model-00003*"))
            if any(p.stat().st_size > 20 << 20 for p in begun if p.exists()):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        out, _ = process.communicate()
    assert process.returncode == (-signal.SIGKILL if kill else 0)
    return [float(x) for x in out.split()]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_run_is_finished_to_the_same_bytes_in_bounded_memory(tmp_path: Path) -> None:
    total = write_model(tmp_path / "old")
    write_plan(tmp_path / "plan.json")
    before, peak, cpu, wall = run(tmp_path, tmp_path / "whole")
    figures = total, LARGEST, before, peak - before, cpu, wall
    LOG.info("%d bytes, largest %d: imports %d, then %d more; %.1f s of CPU, %.1f s", *figures)
    assert peak - before < 200e6  # no whole tensor at all
    assert peak < 1.5 * LARGEST + 200e6
    run(tmp_path, tmp_path / "new", kill=True)
    finished = sorted(p.name for p in (tmp_path / "new").glob("*.safetensors"))
    assert finished == ["model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"]
    times = [(tmp_path / "new" / n).stat().st_mtime_ns for n in finished]
    run(tmp_path, tmp_path / "new")
    assert [(tmp_path / "new" / n).stat().st_mtime_ns for n in finished] == times
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes(), path.name
    assert len(list((tmp_path / "new").iterdir())) == 6
