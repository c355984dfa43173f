"""Goes on from a checkpoint in a process of its own; see test_checkpoint.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel

import fxprune as fp
from fxprune.graph.gate import gates
from fxprune.testing.training import ConvNet, make_batches, train


def go_on(shrinker: fp.training.Shrinker, result: Path) -> None:
    """Five steps with sampled gates, a shrinking, five steps; leaves all numbers in a file."""
    losses = train(shrinker.module, shrinker.optimizer, make_batches(ConvNet, 5, seed=5))
    shrinker.scheduler.step()
    shrinker.ema.update_parameters(shrinker.module)  # type: ignore[union-attr]
    gates(shrinker.program)["blocks.1.gate"].set(0.0)
    shrinker.run("delete-gated")
    losses += train(shrinker.module, shrinker.optimizer, make_batches(ConvNet, 5, seed=6))
    state = shrinker.state_dict()
    torch.save([losses, shrinker.module.state_dict(), state, torch.rand(3)], result)


def main(directory: Path) -> None:
    program = fp.load(directory / "program")
    # The order of the optimizer's parameters is that of the state, not this one.
    optimizer = torch.optim.AdamW(reversed(list(program.module.parameters())))
    shrinker = fp.training.Shrinker(
        program,
        optimizer,
        ema=AveragedModel(program.module),
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
    )
    shrinker.load_state_dict(torch.load(directory / "training.pt"))
    go_on(shrinker, directory / "resumed.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
