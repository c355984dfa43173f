"""What gates and observers cost: the time of a step with them in units of one without."""

from __future__ import annotations

import pytest
import torch
import torchvision

import fxprune as fp
from benchmarks.conftest import Compare
from fxprune.gate import gates

THREADS = 2
BATCH, ROUNDS = 8, 11


# Gates on branches that draw 0 or 1 anew in each step, at theta 1/2.
DRAWN = "insert-gates{scope=block kind=bernoulli estimator=score}"
# What is put in, whether a step trains, and the ratio that is wanted at most.
INSERTED = {
    "insert-gates{scope=block}": (True, 1.03),
    DRAWN: (True, 1.00),
    "insert-gates{scope=unit}": (True, 1.05),
    "insert-observers{stat=on-fraction}": (False, 1.05),
}


@pytest.mark.benchmark(group="Gates and observers")
@pytest.mark.parametrize("inserted", INSERTED)
@pytest.mark.parametrize("network", ["resnet50", "vit_b_16"])
def test_gates(network: str, inserted: str, compare: Compare) -> None:
    train, at_most = INSERTED[inserted]
    x = torch.randn(BATCH, 3, 224, 224)
    program = fp.capture(torchvision.models.get_model(network).train(train), x)
    after = fp.run(program, None, inserted, verify=False).program
    if inserted == DRAWN:
        for gate in gates(after).values():
            gate.set(0.5)

    def run(program: fp.Program) -> None:
        with torch.set_grad_enabled(train):
            out = program(x)
        if train:
            out.square().mean().backward()
            program.module.zero_grad()

    row = compare(lambda: run(program), lambda _: run(after), ROUNDS, at_most)
    row["of a"] = "training step" if train else "forward"
    row["places"] = sum(n.op == "call_module" for n in after.nodes)
