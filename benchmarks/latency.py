"""Latency of pruned networks beside the same networks built by hand at those widths."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from benchmarks.bench import Row, markdown, verdict

THREADS = 2
ALONE = True
LIMIT = 1.03
ROUNDS = 11
WARM_UP = 2
BATCH = 4
HEAD_DIM = 64
TOLERANCE = 1e-4

Tensor = torch.Tensor
State = Mapping[str, Tensor]


def cases() -> list[str]:
    """ResNet-50, and ViT-B/16 against two ways to write it."""
    return ["resnet50", "vit_b_16", "vit_b_16 batch first"]


def measure(case: str) -> Row:
    """Seconds of both in turn, and how far their outputs are apart."""
    from torchvision import models

    import fxprune as fp

    torch.manual_seed(0)
    name, _, layout = case.partition(" ")
    model = models.get_model(name, weights=None).eval()
    _add_noise(model)
    x = torch.randn(BATCH, 3, 224, 224)
    outcome = fp.prune(model, (x,), keep=0.5, metric="macs", multiple_of=8, verify=False)
    pruned = outcome.program.module.eval()
    by_hand = ViT(pruned, batch_first=bool(layout)) if "vit" in name else resnet_by_hand(pruned)
    by_hand.eval()
    with torch.no_grad():
        a, b = pruned(x), by_hand(x)
        rounds = [_round(pruned, by_hand, x, turned=bool(i % 2)) for i in range(WARM_UP + ROUNDS)]
    difference = float((a - b).abs().max() / b.abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(f"the two differ by {difference}")
    return {
        "difference": difference,
        "calls": sum(n.op == "call_function" for n in outcome.program.graph.nodes),
        "rounds": rounds[WARM_UP:],
    }


def _add_noise(model: nn.Module) -> None:
    """Noise for parameters of one value: a head of zeros would hide every difference."""
    with torch.no_grad():
        for p in model.parameters():
            if bool((p == p.flatten()[0]).all()):
                p.add_(0.1 * torch.rand_like(p))


def _round(
    pruned: nn.Module, by_hand: nn.Module, x: Tensor, *, turned: bool
) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds of a call of each; every other round in the other order."""
    pair = [("pruned", pruned), ("by hand", by_hand)]
    return {name: _timed(lambda m=m: m(x)) for name, m in (pair[::-1] if turned else pair)}  # type: ignore[misc]


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


# By hand


def resnet_by_hand(pruned: nn.Module) -> nn.Module:
    """The ResNet-50 of torchvision with layers of the pruned widths."""
    from torchvision import models

    state = dict(pruned.state_dict())
    model: nn.Module = models.resnet50(weights=None)
    for name, module in list(model.named_modules()):
        if f"{name}.weight" in state:
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, _resized(module, state[f"{name}.weight"]))
    model.load_state_dict(state)
    return model


def _resized(layer: nn.Module, weight: Tensor) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        options = {"stride": layer.stride, "padding": layer.padding, "bias": False}
        return nn.Conv2d(weight.shape[1], weight.shape[0], layer.kernel_size, **options)  # type: ignore[arg-type]
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(len(weight))
    return nn.Linear(weight.shape[1], weight.shape[0])


class Attention(nn.Module):
    """Self-attention of `heads` heads over [batch, tokens, width]; queries, keys, values in one.

    Args:
        state: parameters by name.
        path: of an nn.MultiheadAttention.
        heads: how many are left.
        batch_first: lay tokens out by batch; else first by token, as nn.MultiheadAttention does.
    """

    def __init__(self, state: State, path: str, heads: int, *, batch_first: bool) -> None:
        super().__init__()
        self.heads, self.batch_first = heads, batch_first
        self.weight = nn.Parameter(state[f"{path}.in_proj_weight"].clone())
        self.bias = nn.Parameter(state[f"{path}.in_proj_bias"].clone())
        self.out = _linear(state, f"{path}.out_proj")

    def forward(self, x: Tensor) -> Tensor:
        if self.batch_first:
            return self._batch_first(x)
        return self._tokens_first(x.transpose(0, 1)).transpose(0, 1)

    def _tokens_first(self, x: Tensor) -> Tensor:
        t, b, _ = x.shape
        packed = linear(x, self.weight, self.bias).view(t, b, 3, -1)
        packed = packed.unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
        flat = [z.view(t, b * self.heads, -1).transpose(0, 1) for z in packed]
        q, k, v = (z.view(b, self.heads, t, -1) for z in flat)
        mixed = scaled_dot_product_attention(q, k, v, scale=HEAD_DIM**-0.5)
        out: Tensor = self.out(mixed.permute(2, 0, 1, 3).reshape(t * b, -1))
        return out.view(t, b, -1)

    def _batch_first(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = linear(x, self.weight, self.bias).view(b, t, 3, self.heads, -1).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        mixed = scaled_dot_product_attention(q, k, v, scale=HEAD_DIM**-0.5)
        return self.out(mixed.transpose(1, 2).reshape(b, t, -1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, state: State, path: str, heads: int, *, batch_first: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_norm(state, f"{path}.ln_{i}") for i in (1, 2))
        self.attention = Attention(state, f"{path}.self_attention", heads, batch_first=batch_first)
        self.wide, self.narrow = (_linear(state, f"{path}.mlp.{i}") for i in (0, 3))

    def forward(self, x: Tensor) -> Tensor:
        # In torchvision's order of operands: a sum takes the strides of the first one.
        x = self.attention(self.norms[0](x)) + x
        return x + self.narrow(gelu(self.wide(self.norms[1](x))))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """ViT-B/16 with the widths and weights of a pruned one."""

    def __init__(self, pruned: nn.Module, *, batch_first: bool) -> None:
        super().__init__()
        state = pruned.state_dict()
        weight = state["conv_proj.weight"]
        self.patches = nn.Conv2d(3, len(weight), 16, 16)
        self.patches.load_state_dict({"weight": weight, "bias": state["conv_proj.bias"]})
        self.token = nn.Parameter(state["class_token"].clone())
        self.positions = nn.Parameter(state["encoder.pos_embedding"].clone())
        self.blocks = nn.Sequential(
            *(
                Block(state, f"encoder.layers.encoder_layer_{i}", heads, batch_first=batch_first)
                for i, heads in enumerate(_heads(pruned))
            )
        )
        self.norm = _norm(state, "encoder.ln")
        self.head = _linear(state, "heads.head")

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


def _heads(pruned: Any) -> list[int]:
    """Heads that each attention of a pruned program has, from the shape of its queries."""
    attention = torch.ops.aten.scaled_dot_product_attention.default
    nodes = pruned.graph.find_nodes(op="call_function", target=attention)
    return [int(n.args[0].meta["val"].shape[1]) for n in nodes]


def _linear(state: State, path: str) -> nn.Linear:
    weight = state[f"{path}.weight"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": state[f"{path}.bias"]})
    return layer


def _norm(state: State, path: str) -> nn.LayerNorm:
    layer = nn.LayerNorm(len(state[f"{path}.weight"]), eps=1e-6)
    layer.load_state_dict({k: state[f"{path}.{k}"] for k in ("weight", "bias")})
    return layer


# The section of the page


def ratio(row: Row, which: int) -> float:
    """Median over the rounds of pruned / by hand; 0: wall time, 1: CPU time."""
    ratios = [r["pruned"][which] / r["by hand"][which] for r in row["rounds"]]
    return float(statistics.median(ratios))


def render(rows: Sequence[Row]) -> str:
    """The section of the page."""
    good = [r for r in rows if "rounds" in r]
    text = f"""## Latency beside networks built by hand

`fp.prune(keep=0.5, metric="macs", multiple_of=8)`, and a plain nn.Module written with exactly those
widths and the same weights. Eager mode, {THREADS} threads, batch {BATCH} of 3 x 224 x 224, {ROUNDS}
rounds in one process, each round a call of both, the order turned every time. Ratio: the median over
the rounds of pruned / by hand. Wanted: at most {LIMIT}. Outputs agree within {TOLERANCE}.

*vit_b_16* is written as torchvision writes it: attention lays tokens out before the batch, as
`nn.MultiheadAttention` does. *vit_b_16 batch first* is another network of the same function, without
the copies that this takes, for comparison; the pruned program keeps the layout of the model it came from.

"""
    lines = [
        f"- {r['case']}: {ratio(r, 0):.3f}, "
        + ("for comparison." if " " in r["case"] else f"{verdict(ratio(r, 0) <= LIMIT)}.")
        for r in good
    ]
    head = (
        "network",
        "calls in the graph",
        "pruned ms",
        "by hand ms",
        "ratio",
        "ratio of CPU time",
    )
    body = [
        (
            r["case"],
            str(r["calls"]),
            _milliseconds(r, "pruned"),
            _milliseconds(r, "by hand"),
            f"{ratio(r, 0):.3f}",
            f"{ratio(r, 1):.3f}",
        )
        for r in good
    ]
    worst = max((r["difference"] for r in good), default=0.0)
    ending = f"\nLargest difference of their outputs: {worst:.0e} of the largest output.\n"
    return text + "\n".join(lines) + "\n\n" + markdown(head, body) + ending


def _milliseconds(row: Row, name: str) -> str:
    return f"{1e3 * statistics.median(r[name][0] for r in row['rounds']):.1f}"
