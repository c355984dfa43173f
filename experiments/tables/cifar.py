"""Residual networks and VGG-16 on CIFAR-10 (JPEG)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments.arms import (
    complexity,
    complexity_to,
    easier,
    entropy,
    importance,
    layers,
    layers_to,
)
from experiments.tables.common import CLAIM, DENSE, above, decided
from experiments.targets import Above, AtMost, Near
from experiments.task import Arm, Length, Task, controls

# First-order slopes from the first step on; what is undecided in the end is rounded.
AS_IT_WAS = {"estimator": "first-order", "start": 0.9, "start_after": 0, "settle_at": None}
PRICE = 0.05
M1, M2 = f"layers, price {PRICE:g}", "layers and units, nu 1"
M1_HALF = "layers, keep half of the latency"
M2_HALF = "layers and units, keep half of the latency"
NARROW = Task(
    "CIFAR-10 (JPEG) at 16x16, narrow ResNet-20",
    network="narrow ResNet-20",
    data="cifar10-jpeg-16",
    quick=Length(10),
    full=Length(160),
    arms=(
        DENSE,
        Arm(M1_HALF, layers_to(0.5)),
        *controls(M1_HALF, "scratch", "blocks", ("blocks", "latency")),
        *controls(M1_HALF, "random", ("random", "latency")),
        *controls(M1_HALF, "magnitude", ("magnitude", "latency"), ("magnitude after", "latency")),
        *controls(M1_HALF, ("uniform", "latency")),
        Arm(M1, layers(PRICE)),
        *controls(M1, "scratch", "blocks"),
        Arm(M2_HALF, complexity_to(0.5, 0.8)),
        *controls(M2_HALF, "scratch", ("random", "latency"), ("magnitude", "latency")),
        Arm("layers alone, keep half of the latency", complexity_to(0.5, 1.0)),
        Arm("units alone, keep half of the latency", complexity_to(0.5, 0.0)),
        Arm(M2, complexity(1.0, 0.8)),
        *controls(M2, ("magnitude", "latency")),
        Arm("layers alone, nu 1", complexity(1.0, 1.0)),
        Arm("units alone, nu 1", complexity(1.0, 0.0)),
        Arm(f"{M1}, as they were", layers(PRICE, **AS_IT_WAS)),
        Arm("ResNet-14", network="narrow ResNet-14"),
        Arm("ResNet-8", network="narrow ResNet-8"),
    ),
    rate=0.2,
    schedule="one-cycle",
    decay=5e-4,
    claim=CLAIM,
    targets=(
        *decided(M1_HALF),
        AtMost(M1_HALF, "latency", 0.5),
        Near(M1_HALF, "latency", 0.5),
        Above(M1_HALF, "dense", -2.0),
        *above(M1_HALF, 1.0, "blocks", ("blocks", "latency")),
        *above(M1_HALF, 0.0, "scratch", "random", "magnitude"),
        *above(M1_HALF, 5.0, ("uniform", "latency")),
        *above(M1_HALF, 0.0, ("random", "latency"), ("magnitude", "latency")),
        *decided(M1),
        *above(M1, 0.0, "scratch", "blocks"),
        *decided(M2_HALF),
        Near(M2_HALF, "latency", 0.5),
        *decided(M2),
        *(
            Above(arm, f"{alone} alone, {price}", equal_latency=True)
            for arm, price in ((M2_HALF, "keep half of the latency"), (M2, "nu 1"))
            for alone in ("layers", "units")
        ),
        *above(M2_HALF, 0.0, ("random", "latency"), ("magnitude", "latency")),
        *above(M2, 0.0, ("magnitude", "latency")),
    ),
    note="`as they were`: first-order slopes from the first step on, and gates rounded behind training.",
)
CHOICE = replace(
    NARROW,
    name=f"{NARROW.name}, prices",
    arms=(
        DENSE,
        *(Arm(f"layers, price {p:g}", layers(p)) for p in (0.05, 0.08, 0.12)),
        Arm(f"{M1}, decided earlier", layers(PRICE, start_after=1, settle_at=3)),
        Arm(f"{M1_HALF}, decided later", layers_to(0.5, start_after=2, settle_at=4)),
        Arm(M1_HALF, layers_to(0.5)),
        *(Arm(f"layers and units, nu {nu:g}", complexity(nu, 0.8)) for nu in (0.5, 1.0, 2.0)),
    ),
    seeds=(100,),
    final=False,
    claim="",
    targets=(),
    note="Prices are chosen here: on the held-out images, with a seed that no other table has.",
)


def _compared(of: Task) -> Task:
    """The arms that every residual network is compared in."""
    arms = (
        DENSE,
        Arm(M1_HALF, layers_to(0.5)),
        *controls(M1_HALF, "scratch", "blocks", ("blocks", "latency")),
        *controls(M1_HALF, ("magnitude", "latency"), ("uniform", "latency")),
        Arm(M2_HALF, complexity_to(0.5, 0.8)),
        *controls(M2_HALF, "scratch", ("magnitude", "latency")),
    )
    targets = (
        *decided(M1_HALF),
        AtMost(M1_HALF, "latency", 0.5),
        Above(M1_HALF, "dense", -2.0),
        *above(M1_HALF, 1.0, "blocks", ("blocks", "latency")),
        *above(M1_HALF, 0.0, "scratch"),
        *above(M1_HALF, 5.0, ("uniform", "latency")),
        *decided(M2_HALF),
        *above(M2_HALF, 0.0, ("magnitude", "latency")),
    )
    return replace(of, arms=(*arms, *of.arms), targets=targets, claim=CLAIM)


RESNET20 = _compared(
    replace(
        NARROW,
        name="CIFAR-10 (JPEG) at 16x16, ResNet-20",
        network="ResNet-20",
        quick=Length(30),
        arms=(Arm("ResNet-14", network="ResNet-14"), Arm("ResNet-8", network="ResNet-8")),
        note="",
    )
)
DEEP = _compared(
    replace(
        NARROW,
        name="CIFAR-10 (JPEG) at 16x16, narrow ResNet-56",
        network="narrow ResNet-56",
        arms=(Arm("ResNet-20", network="narrow ResNet-20"),),
        note="",
    )
)
VGG = _compared(
    replace(
        NARROW,
        name="CIFAR-10 (JPEG) at 16x16, narrow VGG-16 with shortcuts",
        network="narrow VGG-16",
        prepare="insert-skips",
        quick=Length(20),
        arms=(),
        rate=0.1,
        note="A quarter of the widths, with norms; `insert-skips` puts a shortcut around each layer first.",
    )
)
LARGE = tuple(
    _compared(
        replace(
            NARROW,
            name=f"CIFAR-10 (JPEG), {network}",
            network=network,
            data="cifar10-jpeg",
            quick=Length(30),
            arms=(),
            note="For an accelerator: `--device cuda`.",
        )
    )
    for network in ("ResNet-20", "ResNet-56")
)
ENTROPY_CLAIM = (
    "The papers claim (method 4, arXiv 2308.06619, and EASIER, arXiv 2404.18949) that activations of low entropy can "
    "be made linear, and the layers around them fused, without loss of accuracy."
)
# An activation between two convolutions goes behind each round but the last; there are 9 of them.
ROUNDS = 8
JOINED: dict[str, Any] = {"between_layers": True, "move_padding": True, "fuse_when": "always"}
DEPTH = replace(
    NARROW,
    name=f"{NARROW.name}, method 4",
    quick=Length(3 * ROUNDS),
    arms=(
        Arm("dense", rounds=ROUNDS),
        Arm("dense, one cycle"),
        Arm("EASIER between convolutions", easier(ROUNDS, **JOINED), rounds=ROUNDS),
        *controls("EASIER between convolutions", "scratch"),
        Arm("entropy, zeta 0.5", entropy(0.5, ROUNDS, most=0.9, eps=0.95, rise=0.1)),
    ),
    claim=ENTROPY_CLAIM,
    targets=(
        AtMost("EASIER between convolutions", "layers left", 0.7),
        Above("EASIER between convolutions", "dense", -1.0),
        AtMost("entropy, zeta 0.5", "layers left", 0.7),
        Above("entropy, zeta 0.5", "dense, one cycle", -1.0),
    ),
    note=(
        f"`dense` and EASIER train {ROUNDS} rounds of 3 epochs, with a cycle of the rate in each. Two "
        "convolutions without an activation in between become one of 5x5, whether that is cheaper or not. The sizes "
        "of the entropy-guided network count the weights that are 0."
    ),
)
CURVE = replace(
    NARROW,
    name="CIFAR-10 (JPEG) at 16x16, narrow ResNet-18, method 4",
    network="narrow ResNet-18",
    quick=Length(34),
    arms=(Arm("dense", rounds=17), Arm("EASIER", easier(17), rounds=17)),
    claim=(
        "EASIER (arXiv 2404.18949) removes 8 of the 17 activations of ResNet-18 on CIFAR-10 for .4 points of accuracy, "
        "and 16 for 15 points."
    ),
    targets=(),
    published={0: 92.47, 8: 92.10, 9: 90.35, 12: 84.52, 16: 77.74},
    note="A round has 2 epochs and a cycle of the rate; an activation goes behind each but the last. "
    "Published: the appendix of EASIER, table 5: ResNet-18, 160 epochs a round, CIFAR-10 as it comes.",
)
SIMPLE = Task(
    "CIFAR-10 (JPEG), simple CNN",
    network="simple CNN",
    data="cifar10-jpeg",
    quick=Length(10, 5_000),
    full=Length(100),
    arms=(
        DENSE,
        Arm("importance, 41%", importance(0.41, 0.1)),
        Arm("random rounds, 41%", importance(0.41, 0.1, criterion="random")),
        *controls("importance, 41%", "scratch", "random", "magnitude"),
    ),
    rate=0.02,
    claim="The paper claims (method 3) that 41 % of the neurons can go while the training accuracy stays at .9140.",
    targets=(
        Above("importance, 41%", "random rounds, 41%"),
        *above("importance, 41%", 0.0, "random", "magnitude"),
    ),
    note="Two convolution blocks and three linear layers from 2048, as the paper describes its network.",
)
TASKS: tuple[Task, ...] = (CHOICE, NARROW, RESNET20, DEEP, VGG, *LARGE, DEPTH, CURVE, SIMPLE)
