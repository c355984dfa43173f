"""A variational autoencoder on MNIST, dense against 30 % of its hidden units pruned in training.

The loss is binary cross-entropy plus Kullback-Leibler divergence, in nats per image (Kingma and Welling, arXiv
1312.6114). Writes docs/vae.png and its table in docs/results.md: python experiments/vae.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import fxprune as fp
from benchmarks.commit import commit
from benchmarks.page import renew
from experiments.data import Data, load
from experiments.page import FILE
from fxprune.graph.program import Program
from fxprune.training import Shrinker
from fxprune.training.history import size_of
from fxprune_passes.methods import NeuronImportance
from fxprune_passes.methods.method import Method

Tensor = torch.Tensor
Row = dict[str, Any]
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "vae.png"
BATCH = 128
LATENT = 20


class Vae(nn.Module):
    """Linear layers to the mean and log-variance of 20 numbers, and back to an image."""

    def __init__(self, first: int = 512, second: int = 256) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Flatten(), nn.Linear(784, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU())
        )
        self.mean, self.log_variance = nn.Linear(second, LATENT), nn.Linear(second, LATENT)
        self.decoder = nn.Sequential(
            *(nn.Linear(LATENT, second), nn.ReLU(), nn.Linear(second, first), nn.ReLU()),
            nn.Linear(first, 784),
        )

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the image `[n, 784]`, mean and log-variance `[n, 20]`; noise is `[n, 20]`."""
        hidden = self.encoder(x)
        middle, spread = self.mean(hidden), self.log_variance(hidden)
        return self.decoder(middle + noise * torch.exp(0.5 * spread)), middle, spread


def parts_of_loss(found: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and divergence, nats per image."""
    logits, middle, spread = found
    pixels = binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="sum") / len(x)
    divergence = -0.5 * (1 + spread - middle.square() - spread.exp()).sum() / len(x)
    return pixels, divergence


def _loss(x: Tensor, noise: Tensor, module: nn.Module) -> Tensor:
    pixels, divergence = parts_of_loss(module(x, noise), x)
    return pixels + divergence


def train(data: Data, seed: int, epochs: int, *, pruned: bool) -> tuple[Program, Row]:
    """One run; the trained network and its row."""
    torch.manual_seed(seed)
    example = (data.example(BATCH), torch.randn(BATCH, LATENT))
    program = fp.capture(Vae().train(), example)
    start = size_of(program)
    optimizer = torch.optim.Adam(program.module.parameters(), 1e-3)
    shrinker = Shrinker(program, optimizer)
    method = Method(shrinker)
    if pruned:
        method = NeuronImportance(shrinker, share=0.1, target=0.3, warmup=2)
    curve = []
    for epoch in range(epochs):
        method.module.train()
        for x, _ in data.batches(BATCH, 1000 * seed + epoch):
            method.step(partial(_loss, x, torch.randn(len(x), LATENT)))
        method.end_epoch()
        curve.append(test_loss(shrinker.program, data))
    row = {
        "seed": seed,
        "arm": "30 % pruned" if pruned else "dense",
        "pixels": curve[-1][0],
        "divergence": curve[-1][1],
        "curve": [sum(pair) for pair in curve],
        "before": asdict(start),
        "after": asdict(size_of(shrinker.program)),
    }
    return shrinker.program, row


@torch.no_grad()
def test_loss(program: Program, data: Data) -> tuple[float, float]:
    """Both parts of the loss on the test images, the noise the same in every call."""
    training = program.training
    program.eval()
    x = data.scaled(data.test.inputs)
    noise = torch.randn(len(x), LATENT, generator=torch.Generator().manual_seed(0))
    pixels, divergence = parts_of_loss(program(x, noise), x)
    program.train(training)
    return pixels.item(), divergence.item()


@torch.no_grad()
def draw(programs: dict[str, Program], rows: Sequence[Row], data: Data) -> None:
    """The curves, and test images beside what each network makes of them."""
    plt = import_module("matplotlib.pyplot")
    count = 8
    x = data.scaled(data.test.inputs[:count])
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(1, 1.6))
    for row in rows:
        style = {"color": "C0" if row["arm"] == "dense" else "C1"}
        left.plot(range(1, len(row["curve"]) + 1), row["curve"], **style, lw=1)
    for i, arm in enumerate(programs):
        left.plot([], [], color=f"C{i}", label=arm)
    left.set(xlabel="epoch", ylabel="BCE + KLD, nats per test image")
    left.legend()
    lines = [x[:, 0]]
    for program in programs.values():
        program.eval()
        logits = program(x, torch.zeros(count, LATENT))[0]
        lines.append(torch.sigmoid(logits).reshape(count, 28, 28))
    right.imshow(torch.cat([torch.cat(list(line), 1) for line in lines]), cmap="gray_r")
    right.set_yticks([14, 42, 70], ["test image", *programs])
    right.set_xticks([])
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Trains both networks for each seed; writes the picture and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder of MNIST in torchvision's own layout")
    options = parser.parse_args()
    data = load("mnist", options.data)
    rows: list[Row] = []
    programs: dict[str, Program] = {}
    for seed in range(options.seeds):
        for pruned in (False, True):
            program, row = train(data, seed, options.epochs, pruned=pruned)
            programs.setdefault(row["arm"], program)
            rows.append(row)
            print(json.dumps({k: v for k, v in row.items() if k != "curve"}), flush=True)
    draw(programs, rows, data)
    renew(FILE, {"VAE on MNIST": _table(rows, options.epochs)})


def _table(rows: Sequence[Row], epochs: int) -> str:
    lines = []
    for arm in dict.fromkeys(r["arm"] for r in rows):
        own = [r for r in rows if r["arm"] == arm]
        cells = [[r["pixels"] + r["divergence"] for r in own], [r["pixels"] for r in own]]
        cells.append([r["divergence"] for r in own])
        shown = [f"{mean(c):.2f}" + (f" ± {stdev(c):.2f}" if len(c) > 1 else "") for c in cells]
        lines.append([arm, len(own), *shown, f"{own[0]['after']['parameters']:,}"])
    head = ("", "seeds", "BCE + KLD", "BCE", "KLD", "parameters")
    how = f"{epochs} epochs of MNIST, Adam 1e-3, batch {BATCH}; nats per test image."
    made = f"`python experiments/vae.py`, torch {torch.__version__}, cpu, commit {commit()}."
    table = tabulate(lines, head, tablefmt="github", disable_numparse=True)
    return "\n\n".join([how, made, table, "![curves and reconstructions](vae.png)"])


if __name__ == "__main__":
    main()
