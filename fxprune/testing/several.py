"""What several processes compute together, and one alone on the same data: training in which methods remove parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fxprune as fp
from fxprune.distributed import whole
from fxprune.training import Shrinker, rewrap

Tensor = torch.Tensor
Engine = Literal["alone", "ddp", "fsdp"]
BATCH = 8


class Feed(nn.Module):
    """A residual block of two linear layers behind a layer norm, which does not mix the inputs of a batch."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return found


class Residual(nn.Module):
    """Two residual blocks between a stem and a head; widths that neither two nor four processes divide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 7)
        self.blocks = nn.Sequential(Feed(7, 10), Feed(7, 9))
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.blocks(torch.relu(self.stem(x))))
        return found


def batches(count: int, seed: int, size: int = BATCH) -> list[tuple[Tensor, Tensor]]:
    """Returns random inputs and class labels, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 5, generator=generator, dtype=torch.float64),
            torch.randint(3, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def residual() -> nn.Module:
    """Returns the network, equal each time, in train mode and float64."""
    torch.manual_seed(0)
    return Residual().double().train()


def own_part(x: Tensor, engine: Engine) -> Tensor:
    """Returns what this process trains on of a batch."""
    return x if engine == "alone" else x.chunk(dist.get_world_size())[dist.get_rank()]


def mean_over_processes(value: Tensor, engine: Engine) -> float:
    """Returns the mean of a scalar."""
    if engine == "alone":
        return float(value)
    found = value.detach().clone()
    dist.all_reduce(found)
    return float(found) / dist.get_world_size()


def record(shrinker: Shrinker) -> dict[str, Tensor]:
    """Returns the whole of each tensor of the network, and of the states of the optimizer, by name."""
    program = shrinker.whole_program()
    found = {n: t.detach().clone() for n, t in program.tensors().items()}
    for name, p in shrinker.module.named_parameters():
        for key, value in shrinker.optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                found[f"{name} {key}"] = whole(value).clone()
    return found


def train_with(
    make: Callable[[Shrinker], Any],
    engine: Engine,
    optimizer: Callable[[Any], torch.optim.Optimizer],
    act: Callable[[Any, int], None],
    epochs: int = 3,
) -> dict[str, Any]:
    """Trains with a method, or none, and returns losses and tensors: the same for each engine, up to rounding.

    Args:
        make: makes a method, or returns None.
        engine: how several processes train.
        optimizer: makes the optimizer of some parameters.
        act: called after each epoch with the method, or the shrinker, and the number of the epoch.
        epochs: the number of epochs, of three batches each.
    """
    program = fp.capture(residual(), batches(1, 0)[0][0])
    shrinker = Shrinker(program, optimizer(program.module.parameters()))
    method = make(shrinker)
    ddp: Any = None
    if engine == "fsdp":
        shrinker.shard()
    if engine == "ddp":
        ddp = DistributedDataParallel(shrinker.module)
    losses: list[float] = []
    sizes: list[int] = []
    for epoch in range(epochs):
        for x, y in batches(3, 1 + epoch):
            net = shrinker.module if ddp is None else ddp
            mine = own_part(x, engine), own_part(y, engine)
            losses.append(_step(shrinker, method, net, *mine, engine))
        act(shrinker if method is None else method, epoch)
        if ddp is not None:
            ddp = rewrap(shrinker, ddp)
        sizes.append(sum(p.numel() for p in shrinker.module.parameters()))
    return {"losses": losses, "sizes": sizes, "tensors": record(shrinker)}


def _step(
    shrinker: Shrinker, method: Any, net: nn.Module, x: Tensor, y: Tensor, engine: Engine
) -> float:
    if method is not None:
        method.begin()
    shrinker.optimizer.zero_grad()
    value = cross_entropy(net(x), y)
    value.backward()  # type: ignore[no-untyped-call]
    if method is not None:
        method.learn(value.detach(), lambda module: cross_entropy(module(x), y))
    shrinker.optimizer.step()
    if method is not None:
        method.finish()
    return mean_over_processes(value.detach(), engine)


class Layer(nn.Module):
    """Attention and a feed-forward block, each behind a norm; the number of heads is found from the width."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.each = 2
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, heads * self.each, bias=False) for _ in range(3))
        self.o = nn.Linear(heads * self.each, width, bias=False)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm1(x)
        q, k, v = (
            f(z).unflatten(-1, (-1, self.each)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(z.transpose(1, 2).flatten(-2))
        found: Tensor = x + self.down(torch.relu(self.up(self.norm2(x))))
        return found


class Decoder(nn.Module):
    """Two layers between an embedding and a head that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.layers = nn.ModuleList(Layer(6, 8, 16) for _ in range(2))
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.full((), 2.0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        found: Tensor = self.head(x * self.scale)
        return found


def decoder() -> nn.Module:
    """Returns the decoder, equal each time, in train mode and float64."""
    torch.manual_seed(0)
    return Decoder().double().train()
