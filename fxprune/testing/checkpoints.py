"""A small language model with a config, tied weights and norms, and its checkpoint of three shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fxprune as fp
from fxprune.graph.program import Program

State = Mapping[str, torch.Tensor]


@dataclass
class Config:
    """The sizes of a `Language`."""

    vocabulary: int = 40
    hidden: int = 24
    inner: int = 48
    heads: int = 3
    layers: int = 2
    epsilon: float = 1e-5


class Norm(nn.Module):
    """A root mean square, worked out in 32 bits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(config.hidden) + 0.5)
        self.epsilon = config.epsilon

    def forward(self, x: Any) -> Any:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (self.weight * wide).to(x.dtype)


class Attention(nn.Module):
    """Causal attention, whose heads have a size of their own."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_size = 8
        self.qkv = nn.ModuleList(nn.Linear(config.hidden, 8 * config.heads) for _ in range(3))
        self.out = nn.Linear(8 * config.heads, config.hidden)

    def forward(self, x: Any) -> Any:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, -1, self.head_size).transpose(1, 2) for f in self.qkv)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, n, -1))


class Block(nn.Module):
    """Attention and two linear layers, with a buffer between them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norms = nn.ModuleList(Norm(config) for _ in range(2))
        self.attention = Attention(config)
        self.up, self.down = (
            nn.Linear(config.hidden, config.inner),
            nn.Linear(config.inner, config.hidden, bias=False),
        )
        self.register_buffer("scale", torch.rand(config.inner))

    def forward(self, x: Any) -> Any:
        x = x + self.attention(self.norms[0](x))
        return x + self.down(self.up(self.norms[1](x)).relu() * self.scale)


class Base(nn.Module):
    """All but the head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocabulary, config.hidden)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = Norm(config)

    def forward(self, ids: Any) -> Any:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Language(nn.Module):
    """A language model: the head has the weight of the embedding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Base(config)
        self.head = nn.Linear(config.hidden, config.vocabulary, bias=False)
        self.head.weight = self.model.embed.weight

    def forward(self, ids: Any) -> Any:
        return self.head(self.model(ids))


def make(dtype: torch.dtype = torch.bfloat16) -> Language:
    """A small one."""
    return Language(Config()).to(dtype).eval()


def save(state: State, folder: Path, names: Sequence[str]) -> None:
    """Writes files that take turns in the tensors; with an index, as transformers does, if there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [dict(list(state.items())[i :: len(names)]) for i in range(len(names))]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, metadata={"format": "pt", "from": "a test"})
    if len(names) > 1:
        places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        total = sum(t.nbytes for t in state.values())
        count = sum(t.numel() for t in state.values())
        metadata = {"total_size": total, "total_parameters": count}
        text = json.dumps({"metadata": metadata, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(text)


def read(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of all files of a folder."""
    return {k: t for p in sorted(folder.glob("*.safetensors")) for k, t in load_file(p).items()}


SHARDS = tuple(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))


class Checkpoint:
    """A model, its program, plans for it, and its checkpoint on disk."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.model = make(dtype)
        with torch.device("meta"):
            self.meta = make(dtype)
        self.program: Program = fp.capture(self.model, torch.randint(40, (2, 6)))
        self.source = folder / "checkpoint"
        state = self.model.state_dict()
        self.state = {k: t for k, t in state.items() if k != "head.weight"}
        save(self.state, self.source, SHARDS)
        config = {"model_type": "test", **asdict(self.model.config)}
        (self.source / "config.json").write_text(json.dumps(config))
        (self.source / "tokenizer.json").write_text('{"words": []}')
        # Of the inner features, positions are selected, and nothing else.
        inner = {f"model.blocks.{i}.up.weight": (0, [1, 2, 5, 40]) for i in range(2)}
        self.inner = fp.plan(self.program, inner)
        # The norms average over fewer hidden states.
        self.hidden = fp.plan(self.program, {"model.embed.weight": (1, [0, 7, 8, 23])})
        # The scale of attention stays that of larger heads.
        self.narrow = fp.plan(
            self.program,
            {f"model.blocks.0.attention.qkv.{i}.weight": (0, [3, 11, 19]) for i in (0, 2)},
        )
