"""Random networks as straight-line programs over a pool of values, in functional style.

Other idioms than `blocks`: stored tensors without modules, norms of every kind spelled out, recurrence, attention,
products of values, values that several statements read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import prod
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS = 5
WIDTHS = (4, 6, 8)
T = TypeVar("T")
Compute = Callable[..., Tensor]


class Statements(nn.Module):
    """Values `[b, t, c]`: each statement computes one from earlier ones; the last are read by a linear layer each."""

    def __init__(self, seed: int, length: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)
        self._steps: list[tuple[Compute, tuple[int, ...]]] = []
        self._widths = [6]
        self.stored = nn.ParameterDict()
        self.layers = nn.ModuleDict()
        self.names: list[str] = []
        torch.manual_seed(seed)
        self._linear()
        while len(self._steps) < length:
            make = self._rng.choice(STATEMENTS)
            make(self)
            self.names.append(make.__name__)
        self.eval()
        self._ends = [self._end(i) for i in sorted({len(self._widths) - 1, self.pick()})]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for compute, operands in self._steps:
            values.append(compute(*(values[i] for i in operands)))
        return tuple(F.linear(values[i], self.stored[name]) for i, name in self._ends)

    def _linear(self) -> None:
        self.add(_affine(self, 6, 8), (0,), 8)

    def _end(self, value: int) -> tuple[int, str]:
        return value, self.store(3, self._widths[value])

    def pick(self) -> int:
        """A value, one of the last three mostly."""
        last = len(self._widths) - 1
        return self._rng.randint(max(1, last - 2), last)

    def like(self, value: int) -> int:
        """A value as wide as another, itself perhaps."""
        alike = [i for i, w in enumerate(self._widths) if w == self._widths[value] and i]
        return self._rng.choice(alike)

    def width(self, value: int | None = None) -> int:
        """The width of a value; a random one."""
        return self._rng.choice(WIDTHS) if value is None else self._widths[value]

    def choose(self, among: Sequence[T]) -> T:
        """One of them."""
        return self._rng.choice(among)

    def coin(self) -> bool:
        """Heads or tails."""
        return self._rng.random() < 0.5

    def store(self, *shape: int) -> str:
        """A new stored tensor; its name."""
        name = f"p{len(self.stored)}"
        self.stored[name] = nn.Parameter(torch.randn(shape) / max(1, prod(shape[1:])) ** 0.5)
        return name

    def keep(self, layer: nn.Module) -> str:
        """A new layer; its name."""
        name = f"l{len(self.layers)}"
        self.layers[name] = layer
        return name

    def add(self, compute: Compute, operands: tuple[int, ...], width: int) -> None:
        """A new value."""
        self._steps.append((compute, operands))
        self._widths.append(width)


def _affine(s: Statements, old: int, new: int) -> Compute:
    weight = s.store(new, old)
    bias = s.store(new) if s.coin() else None
    return lambda x: F.linear(x, s.stored[weight], None if bias is None else s.stored[bias])


def project(s: Statements) -> None:
    """A linear layer of stored tensors, and an activation, of which some make something else of 0."""
    a, width = s.pick(), s.width()
    layer, act = _affine(s, s.width(a), width), s.choose(ACTIVATIONS)
    s.add(lambda x: act(layer(x)), (a,), width)


def convolve(s: Statements) -> None:
    """A convolution over tokens, padded in one way or another."""
    a, width = s.pick(), s.width()
    weight = s.store(width, s.width(a), 3)
    mode = "reflect" if s.coin() else "constant"
    s.add(
        lambda x: F.conv1d(F.pad(x.mT, (1, 1), mode), s.stored[weight]).mT.contiguous(),
        (a,),
        width,
    )


def depthwise(s: Statements) -> None:
    """A depthwise convolution over tokens."""
    a = s.pick()
    width = s.width(a)
    layer = s.keep(nn.Conv1d(width, width, 3, padding=1, groups=width))
    s.add(lambda x: s.layers[layer](x.transpose(1, 2)).transpose(1, 2), (a,), width)


def module_norm(s: Statements) -> None:
    """A norm of torch over channels, groups of them, or tokens."""
    a = s.pick()
    n = s.width(a)
    norms: list[nn.Module] = [
        nn.LayerNorm(n),
        nn.RMSNorm(n),
        nn.RMSNorm(n, eps=0.1),
        nn.RMSNorm(n, elementwise_affine=False),
        nn.GroupNorm(2, n),
        nn.BatchNorm1d(n),
        nn.InstanceNorm1d(n, affine=True),
        nn.LocalResponseNorm(3),
    ]
    kind = s.choose(norms)
    layer = s.keep(_shaken(kind))
    if isinstance(kind, nn.LayerNorm | nn.RMSNorm):
        s.add(lambda x: s.layers[layer](x), (a,), n)
    else:
        s.add(lambda x: s.layers[layer](x.transpose(1, 2)).transpose(1, 2), (a,), n)


def _shaken(layer: nn.Module) -> nn.Module:
    """The layer with random affine parameters and running statistics."""
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
                if name in ("bias", "running_mean"):
                    tensor.sub_(1.0)
    return layer


def written_norm(s: Statements) -> None:
    """A norm over channels as a formula."""
    a = s.pick()
    gain, shift = s.store(s.width(a)), s.store(s.width(a))
    norm = s.choose(NORMS)
    s.add(lambda x: norm(x) * s.stored[gain] + s.stored[shift], (a,), s.width(a))


def pair(s: Statements) -> None:
    """Two values of one width in a sum, a product, a maximum, a mixture."""
    a = s.pick()
    b = s.like(a)
    s.add(s.choose(PAIRS), (a, b), s.width(a))


def branch(s: Statements) -> None:
    """A residual branch, scaled per channel."""
    a, inner = s.pick(), s.width()
    n = s.width(a)
    down, up, act, scale = (
        _affine(s, n, inner),
        _affine(s, inner, n),
        s.choose(ACTIVATIONS),
        s.store(n),
    )
    s.add(lambda x: x + up(act(down(x))) * s.stored[scale], (a,), n)


def joined(s: Statements) -> None:
    """Two values beside one another, and a projection of both."""
    a, b, width = s.pick(), s.pick(), s.width()
    layer, act = _affine(s, s.width(a) + s.width(b), width), s.choose(ACTIVATIONS)
    s.add(lambda x, y: layer(act(torch.cat([x, y], -1))), (a, b), width)


def halves(s: Statements) -> None:
    """One half of the channels gates the other."""
    a, width = s.pick(), s.width()
    layer = _affine(s, s.width(a), 2 * width)
    split = s.choose((lambda x: F.glu(x, -1), lambda x: torch.mul(*x.chunk(2, -1)), _swiglu))
    s.add(lambda x: split(layer(x)), (a,), width)


def _swiglu(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return F.silu(a) * b


def shuffled(s: Statements) -> None:
    """A channel shuffle of two groups."""
    a = s.pick()
    n = s.width(a)
    s.add(lambda x: x.unflatten(-1, (2, n // 2)).transpose(-1, -2).flatten(-2), (a,), n)


def excited(s: Statements) -> None:
    """Squeeze and excite over tokens."""
    a = s.pick()
    n = s.width(a)
    down, up = _affine(s, n, 3), _affine(s, 3, n)
    s.add(lambda x: x * torch.sigmoid(up(F.relu(down(x.mean(1, keepdim=True))))), (a,), n)


def summarised(s: Statements) -> None:
    """Every channel weighed by one number of them all."""
    a = s.pick()
    s.add(s.choose(SUMMARIES), (a,), s.width(a))


def compared(s: Statements) -> None:
    """Tokens by their likeness to others, or to stored ones."""
    a, width = s.pick(), s.width()
    n = s.width(a)
    first, second, codes = _affine(s, n, width), _affine(s, n, width), s.store(TOKENS, width)
    back = _affine(s, TOKENS, width)
    likes: list[Compute] = [
        torch.cdist,
        lambda x, y: torch.cosine_similarity(x[:, :, None], y[:, None], -1),
    ]
    like = s.choose(likes)
    if s.coin():
        s.add(lambda x: back(like(first(x), second(x))), (a,), width)
    else:
        s.add(lambda x: back(like(first(x), s.stored[codes].expand(len(x), -1, -1))), (a,), width)


def recurrent(s: Statements) -> None:
    """A recurrent layer."""
    a, width = s.pick(), s.width()
    kinds: list[Callable[..., nn.Module]] = [nn.LSTM, nn.GRU, nn.RNN]
    layer = s.keep(s.choose(kinds)(s.width(a), width, num_layers=1 + s.coin(), batch_first=True))
    s.add(lambda x: s.layers[layer](x)[0], (a,), width)


def cell(s: Statements) -> None:
    """A recurrence written out step by step."""
    a, width = s.pick(), s.width()
    into, on = _affine(s, s.width(a), width), _affine(s, width, width)

    def run(x: Tensor) -> Tensor:
        y = into(x)
        state = torch.tanh(y[:, 0])
        states = [state]
        for t in range(1, 3):
            state = torch.tanh(y[:, t] + on(state))
            states.append(state)
        return torch.stack(states, 1)[:, [0, 1, 2, 2, 1]]

    s.add(run, (a,), width)


def attended(s: Statements) -> None:
    """Attention of two heads, by the fused operator or by products."""
    a = s.pick()
    n, size = s.width(a), 3
    q, k, v = (_affine(s, n, 2 * size) for _ in range(3))
    out, fused = _affine(s, 2 * size, n), s.coin()

    def run(x: Tensor) -> Tensor:
        b, t, _ = x.shape
        one, two, three = (f(x).view(b, t, 2, size).transpose(1, 2) for f in (q, k, v))
        attend = F.scaled_dot_product_attention if fused else _products
        y = attend(one, two, three)
        return x + out(y.transpose(1, 2).reshape(b, t, 2 * size))

    s.add(run, (a,), n)


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / 2, -1) @ v


def outer(s: Statements) -> None:
    """An outer product of two projections, flattened."""
    a, width = s.pick(), s.width()
    first, second = _affine(s, s.width(a), 3), _affine(s, s.width(a), 2)
    back = _affine(s, 6, width)
    s.add(
        lambda x: back((first(x).unsqueeze(-1) * second(x).unsqueeze(-2)).flatten(-2)), (a,), width
    )


def dropped(s: Statements) -> None:
    """Dropout, which is off where networks are compared."""
    a = s.pick()
    layer = s.keep(nn.Dropout(0.0) if s.coin() else nn.AlphaDropout(0.0))
    s.add(lambda x: s.layers[layer](x), (a,), s.width(a))


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 0.1)


def _root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1)


def _response(x: Tensor) -> Tensor:
    """Global response norm (ConvNeXt V2), over tokens and then channels."""
    g: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x * (g / (g.mean(-1, keepdim=True) + 0.1)) + x


NORMS: tuple[Compute, ...] = (
    _standardised,
    _root_mean_square,
    _response,
    lambda x: F.normalize(x, dim=-1),
    lambda x: x - x.mean(-1, keepdim=True),
    lambda x: x / (x.abs().sum(-1, keepdim=True) + 1),
    lambda x: x / (x.std(-1, keepdim=True) + 0.1),
    lambda x: torch.softmax(x, -1),
)
ACTIVATIONS: tuple[Compute, ...] = (
    F.relu,
    F.gelu,
    F.silu,
    torch.tanh,
    torch.sigmoid,
    F.softplus,
    torch.cos,
    F.elu,
    F.hardswish,
    lambda x: x * x,
    lambda x: x,
)
PAIRS: tuple[Compute, ...] = (
    torch.add,
    torch.sub,
    torch.mul,
    torch.maximum,
    lambda x, y: x * y.flip(-1),
    lambda x, y: x * torch.sigmoid(y),
    lambda x, y: x / (y * y + 1),
    lambda x, y: 0.3 * x - y,
)
SUMMARIES: tuple[Compute, ...] = (
    lambda x: x * torch.logsumexp(x, -1, keepdim=True),
    lambda x: x * x.amax(-1, keepdim=True),
    lambda x: x + x.sum(-1, keepdim=True),
    lambda x: x * F.cosine_similarity(x, x.flip(1), -1).unsqueeze(-1),
    lambda x: x.sort(-1).values,
    lambda x: torch.where(x > 0, x, 0.1 * x),
    lambda x: x.cumsum(-1),
    lambda x: x * torch.einsum("btc,bsc->bts", x, x).tanh().mean(-1, keepdim=True),
)
STATEMENTS: tuple[Callable[[Statements], None], ...] = (
    project,
    project,
    convolve,
    depthwise,
    module_norm,
    module_norm,
    written_norm,
    pair,
    branch,
    joined,
    halves,
    shuffled,
    excited,
    summarised,
    compared,
    recurrent,
    cell,
    attended,
    outer,
    dropped,
)
