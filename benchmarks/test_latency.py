"""The latency of pruned networks in units of torchvision's own classes, built by hand at those widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torchvision.models import get_model

import fxprune as fp
from benchmarks.conftest import Compare

THREADS = 2
LIMIT = 1.03
BATCH, ROUNDS = 4, 11
TOLERANCE = 1e-4

Tensor = torch.Tensor


class Attention(nn.Module):
    """Self-attention with fewer heads than nn.MultiheadAttention can have at its width; its parameters' names.

    Args:
        like: the attention of the full model.
        heads: how many are left.
        batch_first: lay tokens out by batch; else first by token, as nn.MultiheadAttention does.
    """

    def __init__(self, like: nn.MultiheadAttention, heads: int, *, batch_first: bool) -> None:
        super().__init__()
        self.heads, self.head_dim, self.batch_first = heads, like.head_dim, batch_first
        self.in_proj_weight, self.in_proj_bias = like.in_proj_weight, like.in_proj_bias
        self.out_proj = like.out_proj

    def forward(self, x: Tensor, *others: Tensor, **options: bool) -> tuple[Tensor, None]:
        b, t, _ = x.shape
        if self.batch_first:
            packed = linear(x, self.in_proj_weight, self.in_proj_bias)
            heads = packed.view(b, t, 3, self.heads, -1).unbind(2)
            mixed = self.mix(*(z.transpose(1, 2) for z in heads))
            return self.out_proj(mixed.transpose(1, 2).reshape(b, t, -1)), None
        packed = linear(x.transpose(0, 1), self.in_proj_weight, self.in_proj_bias)
        packed = packed.view(t, b, 3, -1).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
        flat = (z.view(t, b * self.heads, -1).transpose(0, 1) for z in packed)
        mixed = self.mix(*(z.view(b, self.heads, t, -1) for z in flat))
        out = self.out_proj(mixed.permute(2, 0, 1, 3).reshape(t * b, -1))
        return out.view(t, b, -1).transpose(0, 1), None

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5)


def by_hand(name: str, pruned: Any, *, batch_first: bool) -> nn.Module:
    """The class of torchvision with every parameter and every layer's widths as in the pruned program."""
    state = pruned.state_dict()
    model: nn.Module = get_model(name, weights=None)
    queries = pruned.graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    )
    heads = iter([int(n.args[0].meta["val"].shape[1]) for n in queries])
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            attention = Attention(module, next(heads), batch_first=batch_first)
            model.set_submodule(path, attention)
    for path, module in model.named_modules():
        for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                tensor.data = state[f"{path}.{leaf}".lstrip(".")].clone()
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(module.weight.shape)
    if "vit" in name:
        vars(model)["hidden_dim"] = len(state["conv_proj.weight"])
    return model.eval()


@pytest.mark.benchmark(group="Latency beside networks built by hand")
@pytest.mark.parametrize("case", ["resnet50", "vit_b_16", "vit_b_16 batch first"])
def test_latency(case: str, compare: Compare) -> None:
    name, _, layout = case.partition(" ")
    model = get_model(name, weights=None).eval()
    for p in model.parameters():  # a head of zeros would hide every difference
        if bool((p == p.flatten()[0]).all()):
            p.data += 0.1 * torch.rand_like(p)
    x = torch.randn(BATCH, 3, 224, 224)
    outcome = fp.prune(model, x, keep=0.5, metric="macs", multiple_of=8, verify=False)
    pruned = outcome.program.module.eval()
    reference = by_hand(name, pruned, batch_first=bool(layout))
    with torch.no_grad():
        a, b = pruned(x), reference(x)
        difference = float((a - b).abs().max() / b.abs().max())
        assert difference <= TOLERANCE
        limit = None if layout else LIMIT
        row = compare(lambda: reference(x), lambda _: pruned(x), ROUNDS, limit)
    row["calls"] = sum(n.op == "call_function" for n in pruned.graph.nodes)
    row["largest difference"] = difference
