"""What gates and observers cost: the time of a step with them in units of one without."""

from __future__ import annotations

import pytest
import torch
import torchvision

import fxprune as fp
from benchmarks.conftest import Compare

THREADS = 2
BATCH, ROUNDS = 8, 15


@pytest.mark.benchmark(group="Gates and observers")
@pytest.mark.parametrize("network", ["resnet50", "vit_b_16"])
@pytest.mark.parametrize(
    ("inserted", "step", "at_most"),
    [
        ("insert-gates{scope=block}", "training step", 1.03),
        ("insert-gates{scope=unit}", "training step", 1.10),
        ("insert-observers{stat=on-fraction}", "forward", 1.15),
    ],
)
def test_gates(network: str, inserted: str, step: str, at_most: float, compare: Compare) -> None:
    x = torch.randn(BATCH, 3, 224, 224)
    train = step == "training step"
    program = fp.capture(torchvision.models.get_model(network).train(train), x)
    after = fp.run(program, None, inserted, verify=False).program

    def run(program: fp.Program) -> None:
        with torch.set_grad_enabled(train):
            out = program(x)
        if train:
            out.square().mean().backward()
            program.module.zero_grad()

    places = sum(n.op == "call_module" for n in after.nodes)
    row = compare(lambda: run(program), lambda _: run(after), ROUNDS, at_most, places=places)
    row["case"] = f"{network} {inserted}, {step}"
