"""Processes that belong to a group of several: their start and their end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist


def leave_group() -> NoReturn:
    """Ends this process well, once all others are here too; call it last, where nothing has failed.

    Threads of gloo may still hold tensors that Python knows, and drop them while the interpreter ends: now and
    then that aborts the process (pytorch/pytorch#179291). So the interpreter does not end, the process does.
    """
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_group(script: Path, *args: str, count: int = 2) -> str:
    """Runs a script by torchrun in several processes, one thread each.

    Args:
        script: what each process runs.
        args: of the script.
        count: how many processes.

    Returns:
        What they print.

    Raises:
        AssertionError: it has failed; with the end of what it says.
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
