"""A vision transformer and a small language model."""

from __future__ import annotations

from experiments.arms import complexity_to, layers_to
from experiments.tables.common import CLAIM, DENSE, above, decided
from experiments.targets import Above, AtMost
from experiments.task import Arm, Length, Task, controls
from experiments.text import describe, torch_docs

M1 = "layers, keep half of the latency"
M2 = "layers and units, keep half of the latency"
ARMS = (
    DENSE,
    Arm(M1, layers_to(0.5)),
    *controls(M1, "scratch", "blocks", ("magnitude", "latency"), ("uniform", "latency")),
    Arm(M2, complexity_to(0.5, 0.8)),
    *controls(M2, ("magnitude", "latency")),
)
TARGETS = (
    *decided(M1),
    AtMost(M1, "latency", 0.5),
    Above(M1, "dense", -2.0),
    *above(M1, 1.0, "blocks"),
    *above(M1, 0.0, "scratch", ("magnitude", "latency")),
    *above(M1, 5.0, ("uniform", "latency")),
    *decided(M2),
    *above(M2, 0.0, ("magnitude", "latency")),
)
VIT = Task(
    "CIFAR-10 (JPEG) at 16x16, ViT of 12 blocks",
    network="ViT of 12 blocks",
    data="cifar10-jpeg-16",
    quick=Length(20),
    full=Length(100),
    arms=ARMS,
    rate=1e-3,
    schedule="one-cycle",
    optimizer="AdamW",
    decay=0.05,
    claim=CLAIM,
    targets=TARGETS,
    note="Width 64, patches of 4x4; attention and the two linear layers of a block have a gate each.",
)
GPT = Task(
    "Documentation of torch, GPT of 6 blocks",
    network="GPT of 6 blocks",
    data="torch-docs",
    quick=Length(5),
    full=Length(20),
    arms=ARMS,
    rate=1e-3,
    schedule="one-cycle",
    optimizer="AdamW",
    decay=0.1,
    batch=32,
    claim=CLAIM,
    targets=TARGETS,
    note=(
        f"A model over bytes, width 128, of pieces of 128 bytes of the sources that document torch "
        f"({describe(torch_docs())}); the last tenth is the test."
    ),
)
TASKS: tuple[Task, ...] = (VIT, GPT)
