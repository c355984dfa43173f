"""What two processes of torchrun do; see test_stochastic_gates.py."""

from __future__ import annotations

import datetime
import sys

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fxprune as fp
from fxprune.testing.training import ConvNet, make_batches, make_model
from fxprune_passes.methods import BernoulliLayers


def assert_equal_everywhere(tensors: list[torch.Tensor]) -> None:
    flat = torch.cat([t.detach().double().flatten() for t in tensors])
    found = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(found, flat)
    assert all(torch.equal(f, found[0]) for f in found)


def check(estimator: str) -> None:
    """Steps on other data in each process, a removal, more steps."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = make_model(ConvNet)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    shrinker = fp.training.Shrinker(model, optimizer, args=make_batches(ConvNet, 1)[0][0])
    method = BernoulliLayers(shrinker, 1000, -10.0, estimator=estimator, rate=0.05, verify=False)
    ddp = DistributedDataParallel(method.module)
    for epoch in range(2):
        for x, y in make_batches(ConvNet, 4, seed=2 * epoch + rank):
            method.begin()
            optimizer.zero_grad()
            value = cross_entropy(ddp(x), y)
            value.backward()  # type: ignore[no-untyped-call]
            method.learn(value.detach(), lambda module, x=x, y=y: cross_entropy(module(x), y))  # type: ignore[misc]
            optimizer.step()
            method.finish()
        assert_equal_everywhere(list(method.module.parameters()))
        if epoch == 0:
            method.gates["blocks.0.gate"].set(0.001)
        method.end_epoch()
        ddp = fp.training.rewrap(shrinker, ddp)
    assert list(method.gates) == ["blocks.1.gate"]


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    for estimator in ("two-pass", "score", "first-order"):
        check(estimator)
    if dist.get_rank() == 0:
        sys.stdout.write("agreed\n")
    dist.barrier()  # no process may go while another still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
