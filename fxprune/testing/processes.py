"""Starts and ends groups of processes for distributed tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist


def leave_group() -> NoReturn:
    """Ends this process without an error once all others have arrived; call it last, if nothing has failed.

    Threads of gloo may still hold tensors that Python knows and release them while the interpreter shuts
    down, which occasionally aborts the process (pytorch/pytorch#179291). Therefore the process exits without
    shutting the interpreter down.
    """
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_group(script: Path, *args: str, count: int = 2) -> str:
    """Runs a script with torchrun in several processes, with one thread each.

    Args:
        script: the script that each process runs.
        args: the arguments of the script.
        count: the number of processes.

    Returns:
        The output of the processes.

    Raises:
        AssertionError: the script failed; the message is the end of its output.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launch, f"--nproc-per-node={count}", script, *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
