"""Networks that are trained here first, on one thread in minutes; their weights are kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

import fxprune as fp
from benchmarks.page import RESULTS
from benchmarks.quality.real import Outputs, Real
from experiments.data import Data, load
from experiments.networks import Gpt, Vit, resnet_cifar

BATCH = 64


def resnet() -> Real:
    """ResNet-14 of widths 16, 32 and 64 on CIFAR-10 (JPEG) at 16x16."""
    return _trained("ResNet-14", lambda: resnet_cifar(14), "cifar10-jpeg-16", epochs=8, rate=4e-3)


def vit() -> Real:
    """A vision transformer of 8 blocks of width 48 on the same images."""
    return _trained(
        "ViT of 8 blocks", lambda: Vit(blocks=8, width=48), "cifar10-jpeg-16", epochs=10, rate=2e-3
    )


def gpt() -> Real:
    """A language model over bytes, 6 blocks of width 64, on the documentation of torch."""
    return _trained(
        "GPT of 6 blocks", lambda: Gpt(blocks=6, width=64), "torch-docs", epochs=3, rate=3e-3
    )


def _trained(
    name: str, make: Callable[[], nn.Module], data: str, *, epochs: int, rate: float
) -> Real:
    sets = load(data)
    torch.manual_seed(0)
    model = make()
    file = RESULTS / f"{name}, {epochs} epochs of {data}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
    else:
        _train(model, sets, epochs, rate)
        RESULTS.mkdir(exist_ok=True)
        save_file(model.state_dict(), file)
    model.eval()
    some = torch.randperm(len(sets.test), generator=torch.Generator().manual_seed(7))[:1000]
    held, truth = sets.scaled(sets.test.inputs[some]), sets.test.labels[some]

    def quality(outputs: Outputs) -> float:
        with torch.no_grad():
            parts = zip(torch.split(held, 100), torch.split(truth, 100), strict=True)
            right = [(outputs(x).argmax(-1) == y).float().mean() for x, y in parts]
        return float(torch.stack(right).mean())

    batches = list(_first(sets, 16 + 150))
    measured = fp.Calibration(batches[:16], loss=lambda y, batch: _loss(y, batch[1]))
    of_text = held.dim() == 2
    measure = f"Share of {'next bytes' if of_text else 'test images'} that are told rightly"
    return Real(model, held[:4], measured, [x for x, _ in batches[16:]], quality, measure)


def _train(model: nn.Module, sets: Data, epochs: int, rate: float) -> None:
    """AdamW with one cycle of the rate."""
    optimizer = AdamW(model.parameters(), rate, weight_decay=0.05)
    steps = epochs * (len(sets.train) // BATCH)
    schedule = OneCycleLR(optimizer, rate, total_steps=steps)
    for epoch in range(epochs):
        for x, y in sets.batches(BATCH, epoch):
            loss = _loss(model(x), y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        print(f"  epoch {epoch + 1} of {epochs}: loss {float(loss.detach()):.3f}", flush=True)


def _loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(outputs.flatten(0, -2), labels.flatten())


def _first(sets: Data, count: int) -> list[tuple[Tensor, Tensor]]:
    """The first batches of an epoch that training did not see in this order."""
    found = []
    for batch in sets.batches(32, 1000):
        found.append(batch)
        if len(found) == count:
            break
    return found
