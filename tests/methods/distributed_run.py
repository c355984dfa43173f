"""What two processes of torchrun do; see test_distributed.py."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fxprune.testing.processes import leave_group
from fxprune.testing.training import ConvNet, captured, loss_of, make_batches
from fxprune.training import Shrinker, rewrap
from fxprune_passes.methods import BernoulliLayers, ComplexityAware, EntropyGuided, NeuronImportance
from fxprune_passes.methods.method import Method


def accuracy_of_rank(_: Any) -> float:
    """Fell on one process, rose on the other."""
    return float(dist.get_rank())


def layers(estimator: str) -> Callable[[Shrinker], Method]:
    return lambda s: BernoulliLayers(s, 1000, -10.0, estimator=estimator, rate=0.05, verify=False)


# How it is made, and a tensor that loses weights.
CASES: dict[str, tuple[Callable[[Shrinker], Method], str]] = {
    "bernoulli, two-pass": (layers("two-pass"), "blocks.0.conv1.weight"),
    "bernoulli, score": (layers("score"), "blocks.0.conv1.weight"),
    "complexity": (  # first-order
        lambda s: ComplexityAware(s, 0.5, 0.5, 0.5, rate=0.05, verify=False),
        "blocks.0.conv1.weight",
    ),
    "importance": (
        lambda s: NeuronImportance(s, 0.5, 0.5, warmup=0, observe_every=1, verify=False),
        "stem.weight",
    ),
    "entropy": (
        lambda s: EntropyGuided(s, 0.3, evaluate=accuracy_of_rank, delta=0.0, verify=False),
        "stem.weight",
    ),
}


def assert_equal_everywhere(tensors: list[torch.Tensor]) -> None:
    flat = torch.cat([t.detach().double().flatten() for t in tensors])
    found = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(found, flat)
    assert all(torch.equal(f, found[0]) for f in found)


def check(name: str) -> None:
    """Steps on other data in each process, a removal, more steps."""
    make, tensor = CASES[name]
    program = captured()
    before = program.tensors()[tensor].count_nonzero()
    optimizer = torch.optim.SGD(program.module.parameters(), 0.05, momentum=0.9)
    method: Any = make(Shrinker(program, optimizer))
    ddp = DistributedDataParallel(method.module)
    for epoch in range(2):
        for x, y in make_batches(ConvNet, 3, seed=2 * epoch + dist.get_rank()):
            method.begin()
            optimizer.zero_grad()
            value = cross_entropy(ddp(x), y)
            value.backward()  # type: ignore[no-untyped-call]
            method.learn(value.detach(), loss_of(x, y))
            optimizer.step()
            method.finish()
        if epoch == 0 and hasattr(method, "gates"):
            method.gates["blocks.0.gate"].set(0.001)
        if method.end_epoch():
            ddp = rewrap(method.shrinker, ddp)
        assert_equal_everywhere(list(method.module.parameters()))
    left = method.shrinker.program.tensors().get(tensor)
    assert left is None or left.count_nonzero() < before, name


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    for name in CASES:
        check(name)
    if dist.get_rank() == 0:
        sys.stdout.write("agreed\n")
    leave_group()


if __name__ == "__main__":
    main()
