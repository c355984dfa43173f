"""A classifier of timm: narrower, in timm's class, with features and a new head."""

from __future__ import annotations

from typing import Any

import timm
import torch

import fxprune as fp


def main(name: str = "resnet18", size: int = 64) -> None:
    """Prunes to 70 % of the MACs within what the class can express, and fine-tunes with a new head."""
    model = timm.create_model(name, pretrained=False).eval()  # pretrained=True for real use
    outcome = fp.prune(model, torch.randn(2, 3, size, size), keep=0.7, fits=model)
    print(outcome.report.text(depth=1))

    smaller: Any = outcome.written
    assert type(smaller) is type(model)
    print("features:", tuple(smaller.forward_features(torch.randn(1, 3, size, size)).shape))
    smaller.reset_classifier(num_classes=7)
    optimizer = torch.optim.AdamW(smaller.parameters())
    smaller.train()(torch.randn(2, 3, size, size)).logsumexp(1).sum().backward()
    optimizer.step()


if __name__ == "__main__":
    main()
