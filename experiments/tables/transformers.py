"""A vision transformer and a small language model."""

from __future__ import annotations

from experiments.arms import complexity, layers
from experiments.tables.common import CLAIM, DENSE, decided
from experiments.targets import Above
from experiments.task import Arm, Length, Task, controls
from experiments.text import describe, torch_docs

M1, M2 = "layers, price 0.02", "layers and units, nu 0.3"
VIT = Task(
    "CIFAR-10 (JPEG) at 16x16, ViT of 12 blocks",
    network="ViT of 12 blocks",
    data="cifar10-jpeg-16",
    quick=Length(20),
    full=Length(100),
    arms=(
        DENSE,
        Arm(M1, layers(0.02)),
        *controls(M1, "scratch", "blocks", ("magnitude", "latency")),
        Arm(M2, complexity(0.3, 0.8)),
        *controls(M2, ("magnitude", "latency")),
    ),
    rate=1e-3,
    schedule="one-cycle",
    optimizer="AdamW",
    decay=0.05,
    claim=CLAIM,
    targets=(*decided(M1), Above(M1, "dense", -2.0), *decided(M2)),
    note="Width 64, patches of 4x4; attention and the two linear layers of a block have a gate each.",
)
GPT = Task(
    "Documentation of torch, GPT of 6 blocks",
    network="GPT of 6 blocks",
    data="torch-docs",
    quick=Length(5),
    full=Length(20),
    arms=(
        DENSE,
        Arm(M1, layers(0.02)),
        *controls(M1, "scratch", "blocks", ("uniform", "latency")),
        Arm(M2, complexity(0.3, 0.8)),
        *controls(M2, ("magnitude", "latency")),
    ),
    rate=1e-3,
    schedule="one-cycle",
    optimizer="AdamW",
    decay=0.1,
    batch=32,
    claim=CLAIM,
    targets=(*decided(M1), *decided(M2)),
    note=(
        f"A model over bytes, width 128, of pieces of 128 bytes of the sources that document torch "
        f"({describe(torch_docs())}); the last tenth is the test."
    ),
)
TASKS: tuple[Task, ...] = (VIT, GPT)
