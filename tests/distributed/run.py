"""What each process of torchrun does; see test_engines.py."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from fxprune.testing.processes import leave_group

cases, own_class, shards = (
    SimpleNamespace(**run_path(str(Path(__file__).with_name(f"{name}.py"))))
    for name in ("cases", "own_class", "shards")
)


def main(folder: Path, checkpoint: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    found: dict[str, Any] = {"models": own_class.run_models(checkpoint / "model")}
    of_shrinker = checkpoint / "shrinker"
    if dist.get_world_size() == 2:
        shards.check_shrinker_refusals(folder)
        shards.check_use()
        found["written"] = shards.write_checkpoint("fsdp", of_shrinker)
    else:
        found["read"] = shards.read_checkpoint("fsdp", of_shrinker)
    found |= {
        f"{engine}: {name}": cases.run_case(name, engine)
        for engine in ("ddp", "fsdp")
        for name in cases.names(engine, dist.get_world_size())
    }
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
