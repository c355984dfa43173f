"""Random networks made of building blocks, for property tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 4
Forward = Callable[["Block", Tensor], Tensor]


class Block(nn.Module):
    """A named block: submodules and a function that uses them."""

    parts: nn.ModuleList

    def __init__(self, name: str, run: Forward, *parts: nn.Module) -> None:
        super().__init__()
        self.name, self.run, self.parts = name, run, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)

    def extra_repr(self) -> str:
        return self.name


@dataclass
class Sizes:
    """What the next block can rely on.

    Attributes:
        channels: the channels of an image (axis 1) or of tokens (last axis).
        rng: the source of random numbers.
    """

    channels: int
    rng: random.Random

    def width(self) -> int:
        """Returns a random number of channels that is divisible by 2, 3 and 4."""
        return self.rng.choice((12, 24))


Maker = Callable[[Sizes], Block]


def conv(s: Sizes) -> Block:
    """A convolution to another number of channels."""
    old, s.channels = s.channels, s.width()
    return Block("conv", lambda b, x: b.parts[0](x), nn.Conv2d(old, s.channels, 3, padding=1))


def grouped(s: Sizes) -> Block:
    """A grouped convolution."""
    old, s.channels = s.channels, s.width()
    part = nn.Conv2d(old, s.channels, 3, padding=1, groups=s.rng.choice((2, 3, 4)))
    return Block("grouped", lambda b, x: b.parts[0](x), part)


def depthwise(s: Sizes) -> Block:
    """A depthwise convolution, then a pointwise one."""
    times = s.rng.choice((1, 2))
    deep = nn.Conv2d(s.channels, times * s.channels, 3, padding=1, groups=s.channels)
    return Block(
        "depthwise",
        lambda b, x: b.parts[1](F.relu(b.parts[0](x))),
        deep,
        nn.Conv2d(times * s.channels, s.channels, 1),
    )


def transposed(s: Sizes) -> Block:
    """A transposed convolution, perhaps grouped, that preserves the image size."""
    part = nn.ConvTranspose2d(s.channels, s.channels, 3, padding=1, groups=s.rng.choice((1, 2, 3)))
    return Block("transposed", lambda b, x: b.parts[0](x), part)


def batch_norm(s: Sizes) -> Block:
    """Batch norm and an activation."""
    return Block("batch_norm", lambda b, x: F.relu(b.parts[0](x)), nn.BatchNorm2d(s.channels))


def group_norm(s: Sizes) -> Block:
    """Group norm."""
    part = nn.GroupNorm(s.rng.choice((1, 2, 3, s.channels)), s.channels)
    return Block("group_norm", lambda b, x: b.parts[0](x), part)


def residual(s: Sizes) -> Block:
    """A bottleneck with an identity shortcut."""
    width = s.width()
    down, up = nn.Conv2d(s.channels, width, 1), nn.Conv2d(width, s.channels, 3, padding=1)
    return Block("residual", lambda b, x: x + b.parts[1](F.gelu(b.parts[0](x))), down, up)


def dense(s: Sizes) -> Block:
    """A convolution whose output is appended to its input."""
    old, s.channels = s.channels, s.channels + 12
    return Block("dense", lambda b, x: torch.cat([x, b.parts[0](x)], 1), nn.Conv2d(old, 12, 1))


def twice(s: Sizes) -> Block:
    """A tensor concatenated with itself."""
    s.channels *= 2
    return Block("twice", lambda _, x: torch.cat([x, x.relu()], 1))


def halves(s: Sizes) -> Block:
    """One half of the channels gates the other half."""
    s.channels //= 2

    def run(_: Block, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a * torch.sigmoid(b)

    return Block("halves", run)


def part(s: Sizes) -> Block:
    """A range of channels, counted from either end."""
    cut = s.channels // 4
    s.channels -= cut
    front = s.rng.random() < 0.5
    return Block("part", lambda _, x: x[:, :-cut] if front else x[:, cut:])


def shuffle(s: Sizes) -> Block:
    """A channel shuffle."""
    groups = s.rng.choice((2, 3, 4))

    def run(_: Block, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)

    return Block("shuffle", run)


def excite(s: Sizes) -> Block:
    """Squeeze and excite."""
    down, up = nn.Conv2d(s.channels, 6, 1), nn.Conv2d(6, s.channels, 1)
    return Block(
        "excite",
        lambda b, x: (
            x * torch.sigmoid(b.parts[1](F.relu(b.parts[0](x.mean((2, 3), keepdim=True)))))
        ),
        down,
        up,
    )


def centred(_: Sizes) -> Block:
    """Subtracts the mean over channels from each pixel."""
    return Block("centred", lambda _, x: x - x.mean(1, keepdim=True))


def linear(s: Sizes) -> Block:
    """A linear layer over the last axis, with the image permuted to tokens and back."""
    old, s.channels = s.channels, s.width()

    def run(b: Block, x: Tensor) -> Tensor:
        y: Tensor = b.parts[0](x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2).contiguous()

    return Block("linear", run, nn.Linear(old, s.channels))


def layer_norm(s: Sizes) -> Block:
    """Layer norm over the channels of an image."""

    def run(b: Block, x: Tensor) -> Tensor:
        y: Tensor = b.parts[0](x.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).view(x.shape)

    return Block("layer_norm", run, nn.LayerNorm(s.channels))


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention written as two matrix products."""
    return torch.softmax(q @ k.transpose(-2, -1) * 0.5, -1) @ v


def attention(s: Sizes) -> Block:
    """Attention over pixels with a fused projection and an identity shortcut."""
    heads, size = s.rng.choice((2, 3)), s.rng.choice((3, 4))
    fused = s.rng.random() < 0.5

    def run(b: Block, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y: Tensor = b.parts[0](x.flatten(2).transpose(1, 2))
        q, k, v = y.view(n, h * w, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v) if fused else plain_attention(q, k, v)
        y = b.parts[1](y.transpose(1, 2).reshape(n, h * w, heads * size))
        return x + y.transpose(1, 2).reshape(n, c, h, w)

    parts = nn.Linear(s.channels, 3 * heads * size), nn.Linear(heads * size, s.channels)
    return Block("attention", run, *parts)


BLOCKS: tuple[Maker, ...] = (
    conv,
    grouped,
    depthwise,
    transposed,
    batch_norm,
    group_norm,
    residual,
    dense,
    twice,
    halves,
    part,
    shuffle,
    excite,
    centred,
    linear,
    layer_norm,
    attention,
)


def random_network(seed: int, length: int) -> nn.Sequential:
    """Returns a network of `length` random blocks on images `[b, 3, 4, 4]`, with a linear layer at its end."""
    sizes = Sizes(12, random.Random(seed))
    torch.manual_seed(seed)
    blocks: list[nn.Module] = [nn.Conv2d(3, 12, 1)]
    for _ in range(length):
        blocks.append(sizes.rng.choice(BLOCKS)(sizes))
        if sizes.channels % 12 or sizes.channels > 48:
            blocks.append(conv(sizes))
    end = [nn.Flatten(), nn.Linear(sizes.channels * SIZE * SIZE, 3)]
    if sizes.rng.random() < 0.5:
        end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes.channels, 3)]
    return nn.Sequential(*blocks, *end).eval()
