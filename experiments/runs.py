"""Every table of the experiments."""

from __future__ import annotations

from experiments.arms import (
    complexity,
    entropy,
    first_order_layers,
    importance,
    layers,
    layers_to,
)
from experiments.task import Arm, Length, Task, controls

DENSE = Arm("dense")
M1 = "layers, price 0.05"
M2 = "layers and units, nu 1"
NARROW = Task(
    "CIFAR-10 (JPEG) at 16x16, narrow ResNet-20",
    network="narrow ResNet-20",
    data="cifar10-jpeg-16",
    quick=Length(10),
    full=Length(160),
    arms=(
        DENSE,
        Arm(M1, layers(0.05)),
        *controls(M1, "scratch", "blocks", "random", "magnitude"),
        *controls(M1, ("random", "latency"), ("magnitude", "latency"), ("uniform", "latency")),
        *controls(M1, ("magnitude after", "latency")),
        Arm("layers, keep half of the latency", layers_to(0.5)),
        Arm(M2, complexity(1.0, 0.8)),
        *controls(M2, "scratch", ("random", "latency"), ("magnitude", "latency")),
        Arm("layers alone, nu 1", complexity(1.0, 1.0)),
        Arm("units alone, nu 1", complexity(1.0, 0.0)),
        Arm("layers and units, nu 0.5", complexity(0.5, 0.8)),
        *controls("layers and units, nu 0.5", ("magnitude", "latency")),
        Arm("layers alone, nu 0.5", complexity(0.5, 1.0)),
        Arm("units alone, nu 0.5", complexity(0.5, 0.0)),
        Arm("layers, price 0.05, first-order, as it was", first_order_layers(0.05)),
        Arm("ResNet-14", network="narrow ResNet-14"),
        Arm("ResNet-8", network="narrow ResNet-8"),
    ),
    rate=0.2,
    schedule="one-cycle",
    decay=5e-4,
)
CHOICE = Task(
    f"{NARROW.name}, prices",
    network=NARROW.network,
    data=NARROW.data,
    quick=NARROW.quick,
    full=NARROW.full,
    arms=(
        DENSE,
        *(Arm(f"layers, price {p:g}", layers(p)) for p in (0.03, 0.05, 0.08)),
        *(Arm(f"layers and units, nu {nu:g}", complexity(nu, 0.8)) for nu in (0.5, 1.0, 2.0)),
    ),
    rate=NARROW.rate,
    schedule=NARROW.schedule,
    decay=NARROW.decay,
    seeds=(100,),
    final=False,
    note="Prices are chosen here, on the validation set and a seed that no other table has.",
)
TASKS: tuple[Task, ...] = (CHOICE, NARROW)
