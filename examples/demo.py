"""Prunes ResNet-50 to half its MACs, verifies it, and measures both. Run by `make demo`."""

from __future__ import annotations

import torch
import torchvision

import fxprune as fp
from fxprune.report.latency import compare_latency


def main() -> None:
    """The demo; about a minute on two cores."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()

    print("Capturing torchvision's ResNet-50 (random weights) ...")
    program = fp.capture(model, (torch.randn(2, 3, 224, 224),))
    print(fp.summary(program, depth=1))

    print("\nRemoving units until half of the MACs are left, and verifying in float64 ...")
    outcome = fp.prune(program, keep=0.5, metric="macs", multiple_of=8)
    print(outcome.report.text(depth=1))

    print("\nMeasuring both, in turn ...")
    print(compare_latency(program, outcome.program, rounds=9, warmup=2))


if __name__ == "__main__":
    main()
