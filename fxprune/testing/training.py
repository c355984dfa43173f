"""Small networks in train mode and float64, and training loops on random data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline

Tensor = torch.Tensor
Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Two convolutions with norms and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width + 2, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width + 2)
        self.conv2 = nn.Conv2d(width + 2, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class ConvNet(nn.Module):
    """A stem, two residual blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        found: Tensor = self.head(x.mean((2, 3)))
        return found


class Mlp(nn.Module):
    """Three linear layers with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Linear(5, 8), nn.BatchNorm1d(8)
        self.two, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.one(x)))
        found: Tensor = self.head(torch.tanh(self.two(x)))
        return found


class Transformer(nn.Module):
    """One attention block and one feed-forward block, each after a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = x + self.out(y)
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        found: Tensor = self.head(x.mean(1))
        return found


SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    ConvNet: (3, 6, 6),
    Mlp: (5,),
    Transformer: (3, 5),
}
# What stands where unit gates go: the widths inside, not those that a layer norm runs over.
INSIDE: dict[type[nn.Module], str] = {
    ConvNet: "blocks.*",
    Mlp: "*",
    Transformer: "up.*",
}
OPTIMIZERS: dict[str, Callable[[Iterable[Any]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
}


def make_model(kind: type[nn.Module] = ConvNet, seed: int = 0) -> nn.Module:
    """Returns a network with random weights, in train mode and float64."""
    torch.manual_seed(seed)
    model = kind().double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_batches(kind: type[nn.Module], count: int, seed: int = 1) -> list[Batch]:
    """Returns random inputs and class labels."""
    generator = torch.Generator().manual_seed(seed)
    size = (4, *SHAPES[kind])
    return [
        (
            torch.randn(size, generator=generator, dtype=torch.float64),
            torch.randint(3, (4,), generator=generator),
        )
        for _ in range(count)
    ]


def loss_of(x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
    """Returns a function that computes the loss of a module on a batch."""
    return lambda module: functional.cross_entropy(module(x), y)


def capture(model: nn.Module, pipeline: str = "") -> Program:
    """Captures the network in train mode with gates inserted; the gates are not trained."""
    example = make_batches(type(model), 1)[0][0]
    program = fp.capture(model, example)
    if pipeline:
        program = run_pipeline(program, pipeline, verify=False).program
    for name, parameter in program.module.named_parameters():
        parameter.requires_grad_(not name.endswith(".theta"))
    return program


@cache
def _captured(kind: Any) -> Program:
    return fp.capture(make_model(kind), make_batches(kind, 1)[0][0])


def captured(kind: type[nn.Module] = ConvNet) -> Program:
    """Returns a copy of a network that was captured once; every parameter is trained."""
    key: Any = kind  # a class can be hashed, though mypy reads the hash of its instances
    return copy.deepcopy(_captured(key))


def weights(program: Program) -> list[nn.Parameter]:
    """Returns the parameters that are trained."""
    return [p for p in program.module.parameters() if p.requires_grad]


def train(
    module: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Batch]
) -> list[float]:
    """Runs one training step per batch; returns the losses."""
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def snapshot(program: Program, optimizer: torch.optim.Optimizer) -> Any:
    """Copies everything that a failure must leave unchanged, with the identities of its parts."""
    tensors = program.tensors()
    return copy.deepcopy(
        {
            "code": program.module.code,
            "tensors": {n: t.detach() for n, t in tensors.items()},
            "identities": {n: id(t) for n, t in tensors.items()},
            "gradients": {n: t.grad for n, t in tensors.items()},
            "optimizer": optimizer.state_dict(),
            "groups": [[id(p) for p in g["params"]] for g in optimizer.param_groups],
            "state": {id(p): {k: id(v) for k, v in s.items()} for p, s in optimizer.state.items()},
            "random": torch.get_rng_state(),
        }
    )


def assert_same(a: Any, b: Any) -> None:
    """Asserts that two snapshots are equal bit by bit."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b
