"""Expected costs: the rewritten network at corners, enumeration and finite differences in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import fxprune as fp
from fxprune.api import solved
from fxprune.cost import node_macs
from fxprune.graph.gate import gates
from fxprune.graph.leaf import is_inside_leaf
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.structure.expected_cost import Expected, ExpectedCost
from fxprune.testing.training import ConvNet, Mlp, Transformer

Tensor = torch.Tensor
Thetas = dict[str, Tensor]


class Nested(nn.Module):
    """A block inside the branch of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.enter(x))
        y = y + torch.relu(self.inner(y))
        return self.head((x + self.leave(y)).mean((2, 3)))


class Parallel(nn.Module):
    """Branches side by side, one convolution grouped, one that feeds two of them; a weight that two share."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, 6, 1)
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1, groups=2)
        self.both = nn.Conv2d(4, 4, 1, bias=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.enter(x))
        x = x + self.both(torch.relu(self.left(y)))
        x = x + self.both(torch.relu(self.right(y)))
        return self.head(x.mean((2, 3)))


class Deep(nn.Module):
    """Two blocks of three layers, in one of which lies a block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 3)])
        self.enter, self.inner, self.leave = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = self.first
        x = x + three(torch.relu(two(torch.relu(one(x)))))
        y = self.enter(x)
        return x + self.leave(y + torch.relu(self.inner(y)))


class Shared(nn.Module):
    """An encoder that two decoding blocks read, as in T5."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.q, self.kv, self.out = (
            nn.ModuleList(nn.Linear(8, n, bias=False) for _ in range(2)) for n in (8, 16, 8)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x = self.embed(x)
        x = x + self.down(torch.relu(self.up(x)))
        for q, kv, out in zip(self.q, self.kv, self.out, strict=True):
            k, v = kv(x).chunk(2, -1)
            y = y + out(torch.softmax(q(y) @ k.transpose(1, 2), -1) @ v)
        return self.head(y)


class Stream(nn.Module):
    """A layer from a residual stream to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inside, self.leave = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.inside(x))


def mobilenet() -> nn.Module:
    stages = [[1, 8, 1, 1], [6, 8, 2, 2], [6, 16, 2, 2]]
    return torchvision.models.MobileNetV2(4, 0.5, stages)


def bottlenecks() -> nn.Module:
    block = torchvision.models.resnet.Bottleneck
    return torchvision.models.ResNet(block, [2, 1, 1, 1], num_classes=3, width_per_group=4)


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 24, num_classes=3)


NETWORKS: dict[Callable[[], nn.Module], tuple[int, ...]] = {
    ConvNet: (2, 3, 6, 6),
    Deep: (2, 3),
    Mlp: (2, 5),
    Nested: (2, 4, 6, 6),
    Parallel: (2, 4, 6, 6),
    Shared: (2, 5, 3),
    Transformer: (2, 3, 5),
    bottlenecks: (2, 3, 32, 32),
    mobilenet: (2, 3, 32, 32),
    vit: (2, 3, 32, 32),
}
INSIDE = [(make, "block inner", False) for make in NETWORKS]
CASES = [
    *INSIDE,
    *((make, "block inner", True) for make in (ConvNet, Transformer)),
    *((make, "layer", False) for make in (ConvNet, Nested, Parallel, mobilenet)),
    *((make, "block unit head layer", False) for make in (Transformer, Parallel, Shared)),
]


@cache
def captured(make: Callable[[], nn.Module], *, train: bool = False) -> Program:
    torch.manual_seed(0)
    return fp.capture(make().train(train), torch.randn(NETWORKS[make]))


@cache
def gated(make: Callable[[], nn.Module], scopes: str, *, train: bool = False) -> Program:
    steps = " | ".join(f"insert-gates{{scope={s} kind=soft}}" for s in scopes.split())
    return run_pipeline(captured(make, train=train), steps, verify=False).program


def measured(program: Program) -> tuple[int, int]:
    sizes = [
        p.numel()
        for n, p in program.module.named_parameters()
        if not is_inside_leaf(program.module, n)
    ]
    return sum(node_macs(program).values()), sum(sizes)


def corners(program: Program, count: int) -> Iterator[Thetas]:
    """Random patterns; some unit gates are closed, or open, as a whole."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        found = {}
        for path, gate in gates(program).items():
            open_ = rng.random(gate.theta.shape) < rng.choice((0.0, 0.5, 1.0), p=(0.15, 0.7, 0.15))
            found[path] = torch.as_tensor(open_).to(gate.theta.dtype)
        yield found


def between(program: Program) -> Thetas:
    """Probabilities away from 0 and 1."""
    rng = np.random.default_rng(1)
    found = gates(program).items()
    return {p: torch.as_tensor(rng.uniform(0.2, 0.9, g.theta.shape)) for p, g in found}


def numbers(expected: Expected) -> tuple[float, float]:
    return expected.macs.item(), expected.params.item()


@pytest.mark.parametrize(("make", "scopes", "train"), CASES)
def test_corners_are_the_rewritten_network(
    make: Callable[[], nn.Module], scopes: str, train: bool
) -> None:
    program = gated(make, scopes, train=train)
    cost, compared = ExpectedCost(program, solved(program)), 0
    for thetas in corners(program, 4):
        for path, gate in gates(program).items():
            gate.set(thetas[path])
        small = run_pipeline(program, "delete-gated", verify=False).program
        if not gates(small):  # where a 0 cannot be followed the rewrite leaves the gate
            assert numbers(cost(thetas)) == measured(small)
            compared += 1
    assert compared > 1


@pytest.mark.parametrize(
    ("make", "scopes"),
    [
        (Deep, "block inner"),
        (Parallel, "block layer"),
        (Nested, "block layer"),
        (Transformer, "layer"),
        (Shared, "block layer"),
    ],
)
def test_in_between_it_is_the_mean_over_all_patterns(
    make: Callable[[], nn.Module], scopes: str
) -> None:
    program = gated(make, scopes)
    cost = ExpectedCost(program, solved(program))
    thetas = between(program)
    flat = torch.cat([t.reshape(-1) for t in thetas.values()])
    mean = np.zeros(2)
    for bits in product((0.0, 1.0), repeat=len(flat)):
        pattern = torch.tensor(bits, dtype=torch.float64)
        chance = torch.where(pattern > 0, flat, 1 - flat).prod().item()
        parts = torch.split(pattern, [t.numel() for t in thetas.values()])
        corner = {p: v.view_as(t) for (p, t), v in zip(thetas.items(), parts, strict=True)}
        mean += chance * np.array(numbers(cost(corner)))
    np.testing.assert_allclose(numbers(cost(thetas)), mean, rtol=1e-12)


@pytest.mark.parametrize("ends", [False, True], ids=["inside", "at the ends"])
@pytest.mark.parametrize(
    ("make", "scopes"), [(Deep, "block inner"), (Transformer, "block unit head layer")]
)
def test_gradients_agree_with_differences(
    make: Callable[[], nn.Module], scopes: str, ends: bool
) -> None:
    program = gated(make, scopes)
    cost = ExpectedCost(program, solved(program))
    thetas = next(corners(program, 1)) if ends else between(program)
    flat = [t.double().requires_grad_() for t in thetas.values()]

    def share(*values: Tensor) -> Tensor:
        found = cost(dict(zip(thetas, values, strict=True)))
        return found.macs / 1e3 + found.params / 1e2

    assert torch.autograd.gradcheck(share, flat, eps=1e-5, atol=1e-5)


def test_a_gate_in_two_axes_counts_with_its_mean_in_each() -> None:
    program = fp.capture(Stream().eval(), torch.randn(1, 3))
    program = run_pipeline(program, "insert-gates{scope=unit kind=soft}", verify=False).program
    (path,) = gates(program)
    found = ExpectedCost(program, solved(program))({path: torch.full((4,), 0.5)})
    kept = 4 * 0.5
    assert found.macs.item() == pytest.approx(kept * 3 + kept * kept + kept * 2)
    assert found.params.item() == pytest.approx(4 * kept + kept * kept + kept + 2 * kept + 2)


def test_parameters_that_nothing_reads_count() -> None:
    model = ConvNet().eval()
    model.register_parameter("spare", nn.Parameter(torch.ones(7)))
    program = fp.capture(model, torch.randn(2, 3, 6, 6))
    program = run_pipeline(program, "insert-gates", verify=False).program
    closed = {path: torch.zeros(()) for path in gates(program)}
    without = gated(ConvNet, "block")
    rest = ExpectedCost(without, solved(without))({p: torch.zeros(()) for p in gates(without)})
    found = ExpectedCost(program, solved(program))(closed)
    assert found.params.item() == rest.params.item() + 7


def test_without_gates_it_is_the_cost() -> None:
    program = captured(Mlp)
    assert numbers(ExpectedCost(program, solved(program))({})) == measured(program)
