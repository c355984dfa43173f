"""Small networks on MNIST."""

from __future__ import annotations

from experiments.arms import complexity, easier, entropy, importance, layers
from experiments.tables.common import CLAIM, DENSE, above, decided
from experiments.targets import Above, AtMost, Target
from experiments.task import Arm, Length, Task, controls


def pruned_neurons(share: float, step: float) -> tuple[Arm, ...]:
    """Method 3 at a share of the hidden units, the paper's control, and ours behind the same last cut."""
    name = f"importance, {share:.0%}"
    return (
        Arm(name, importance(share, step)),
        Arm(f"random rounds, {share:.0%}", importance(share, step, criterion="random")),
        *controls(name, "scratch", ("random", "params"), ("magnitude", "params")),
        *controls(name, ("magnitude after", "params")),
    )


def above_all(share: float, step: float) -> tuple[Target, ...]:
    """Method 3 against each of its controls."""
    mine, *others = pruned_neurons(share, step)
    return tuple(Above(mine.name, other.name) for other in others)


MLP = Task(
    "MNIST, MLP 784-50-30-10",
    network="MLP 784-50-30-10",
    data="mnist",
    quick=Length(15),
    full=Length(60),
    arms=(
        DENSE,
        *(a for s in (0.3, 0.5, 0.68) for a in pruned_neurons(s, 0.1)),
        Arm("signed importance, 68%", importance(0.68, 0.1, signed=True)),
    ),
    claim=(
        "The paper claims (method 3) a training accuracy of .9217 with 68 % of the neurons removed, and better results "
        "than random pruning."
    ),
    targets=above_all(0.68, 0.1),
    note=(
        "Shares of hidden units, a tenth of each layer's width a round; `random rounds` is the paper's control. "
        "Random units and magnitude cut once, in the epoch of the last round, and train as long behind it."
    ),
)
LENET = Task(
    "MNIST, LeNet-5, units",
    network="LeNet-5",
    data="mnist",
    quick=Length(12, 20_000),
    full=Length(40),
    arms=(DENSE, *(a for s in (0.5, 0.68) for a in pruned_neurons(s, 0.15))),
    claim="The same claims, for a network with convolutions.",
    targets=(*above_all(0.5, 0.15), *above_all(0.68, 0.15)),
    note="Shares are of hidden units and channels, 15 % of each layer's width a round.",
)
M1, M2 = "layers, price 0.05", "layers and units, nu 0.3"
RESIDUAL = Task(
    "MNIST, residual MLP of 8 blocks",
    network="residual MLP",
    data="mnist",
    quick=Length(10),
    full=Length(60),
    arms=(
        DENSE,
        *(Arm(f"layers, price {p:g}", layers(p)) for p in (0.02, 0.05)),
        *(Arm(f"layers and units, nu {nu:g}", complexity(nu, 0.8)) for nu in (0.1, 0.3)),
        *controls(M1, "scratch", "blocks", ("random", "params"), ("magnitude", "params")),
    ),
    claim=CLAIM,
    targets=(
        *decided(M1),
        *above(M1, 0.0, "scratch", "blocks"),
        *decided(M2),
    ),
)
SHORT = "EASIER, three activations"
DEEP = Task(
    "MNIST, MLP of 6 layers",
    network="MLP of 6 layers",
    data="mnist",
    quick=Length(15),
    full=Length(60),
    arms=(
        DENSE,
        Arm("dense, as EASIER", rounds=5),
        Arm("entropy, zeta 0.5", entropy(0.5, 5, most=0.9, eps=1.1, rise=0.02)),
        Arm("EASIER", easier(5), rounds=5),
        Arm(SHORT, easier(5, gone=3), rounds=5),
        *controls("entropy, zeta 0.5", "scratch", ("random", "params"), ("magnitude", "params")),
        *controls("EASIER", "scratch", ("random", "params"), ("magnitude", "params")),
        *controls(SHORT, "scratch", ("random", "params"), ("magnitude", "params")),
    ),
    rate=0.02,
    claim=(
        "The paper claims (method 4, arXiv 2308.06619) that pruning weights where the entropy is low drives it "
        "to 0 in whole layers, which are then linear and go without loss of accuracy."
    ),
    targets=(
        Above("entropy, zeta 0.5", "dense", -1.0),
        Above("EASIER", "dense, as EASIER", -1.0),
        AtMost("EASIER", "layers left", 0.7),
        Above(SHORT, "dense, as EASIER", -1.0),
        AtMost(SHORT, "layers left", 0.7),
    ),
    note=(
        "The sizes of the entropy-guided networks count the weights that are 0. That three activations go was chosen "
        "on the held-out images of the first seed."
    ),
)
TASKS: tuple[Task, ...] = (MLP, LENET, RESIDUAL, DEEP)
