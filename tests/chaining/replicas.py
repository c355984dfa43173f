"""What each process of test_ddp.py does; run by torchrun: `replicas.py GIVEN FOUND`."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fxprune.graph.gate import Gate
from fxprune.observe import Observer, count_apart
from fxprune.testing.processes import leave_group


def main(given: str, wanted: str) -> None:
    """Runs every check and saves what the first process found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    module, x = torch.load(given, weights_only=False)
    part = x.chunk(dist.get_world_size())[dist.get_rank()]
    start = {name: t.clone() for name, t in module.state_dict().items()}
    found = {}
    for check in (gradients, counts, steps_with_drawn_samples, steps_with_equal_seeds):
        module.load_state_dict(start)
        module.zero_grad()
        replica = DistributedDataParallel(count_apart(module))
        found[check.__name__] = check(module, replica, part)
    if dist.get_rank() == 0:
        torch.save(found, wanted)
    leave_group()


def gradients(module: nn.Module, run: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Gradients of one batch: norms in eval mode, gates in train mode and drawn beforehand."""
    module.eval()
    for gate in gates(module):
        gate.train()
    draw(module, 0)
    run(x).square().mean().backward()
    for gate in gates(module):
        gate.draws = True
    return {name: p.grad for name, p in module.named_parameters()}


def counts(module: nn.Module, run: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """What the observers of all processes counted in two batches."""
    module.eval()
    found = observers(module)
    for observer in found.values():
        observer.reset()
    with torch.no_grad():
        for piece in x.chunk(2):
            run(piece)
    tables = {name: observer.all_reduce().table() for name, observer in found.items()}
    for observer in found.values():
        observer.reset()
    return tables


def steps_with_drawn_samples(module: nn.Module, run: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Steps whose samples a generator gives, seeded alike in every process."""
    found = _steps(module, run, x, lambda step: draw(module, step))
    for gate in gates(module):
        gate.draws = True
    return found


def steps_with_equal_seeds(module: nn.Module, run: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Steps whose samples the forward draws, all processes seeded alike."""
    return _steps(module, run, x, torch.manual_seed)


def _steps(module: nn.Module, run: nn.Module, x: torch.Tensor, before: Any) -> dict[str, Any]:
    """Three steps in train mode; whether parameters and samples are the same to the bit everywhere."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    samples, losses = [], []
    for step in range(3):
        optimizer.zero_grad()
        before(step)
        loss = run(x).square().mean()
        loss.backward()
        optimizer.step()
        samples.append(torch.cat([g.sample.reshape(-1) for g in gates(module)]))
        losses.append(loss.detach())
    parameters = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    return {
        "parameters": _equal(parameters),
        "samples": _equal(torch.cat(samples)),
        "losses": _equal(torch.stack(losses)),
        "changed": not torch.equal(samples[0], samples[1]),
    }


def _equal(mine: torch.Tensor) -> bool:
    """Whether every process holds the same bits."""
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    return all(torch.equal(mine, other) for other in every)


def draw(module: nn.Module, seed: int) -> None:
    """Samples every gate by a generator of its own, and lets no forward draw."""
    generator = torch.Generator().manual_seed(seed)
    for gate in gates(module):
        gate.draws = False
        gate.draw(generator)


def gates(module: nn.Module) -> list[Gate]:
    """The gates of a module."""
    return [m for m in module.modules() if isinstance(m, Gate)]


def observers(module: nn.Module) -> dict[str, Observer]:
    """The observers of a module by their paths."""
    return {name: m for name, m in module.named_modules() if isinstance(m, Observer)}


if __name__ == "__main__":
    main(*sys.argv[1:])
