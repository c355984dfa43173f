"""What each process of torchrun does; see test_engines.py."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from cases import names, run_case
from own_class import run_models

from fxprune.testing.processes import leave_group


def main(folder: Path, checkpoint: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    found: dict[str, Any] = {"models": run_models(checkpoint)}
    found |= {
        f"{engine}: {name}": run_case(name, engine)
        for engine in ("ddp", "fsdp")
        for name in names(engine, dist.get_world_size())
    }
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
