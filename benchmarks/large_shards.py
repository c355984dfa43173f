"""A Llama that is larger than memory loses layers and width by calibration, verified, from shards on disk.

    python -m benchmarks.large_shards FOLDER [--size 1b|8b] [--layers N]

Weights are random. FOLDER gets the checkpoint `whole`, `short` without some layers, and `small`, which is narrower too.
Prints sizes in bytes, the peak of resident memory and CPU seconds as JSON.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import typer
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune as fp

T = TypeVar("T")
SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
"""Those of TinyLlama 1.1B and Llama 3.1 8B."""


def main(
    folder: Path,
    size: Literal["1b", "8b"] = "1b",
    layers: Annotated[int, typer.Option(help="in place of those of the size")] = 0,
    deleted: Annotated[int, typer.Option(help="layers that go")] = 2,
    keep: Annotated[float, typer.Option(help="share of the MACs of what is left")] = 0.8,
    tokens: Annotated[int, typer.Option(help="in each of two batches of two rows")] = 32,
) -> None:
    """Makes the checkpoint, and prunes it."""
    torch.set_num_threads(1)
    config = LlamaConfig(**SIZES[size], tie_word_embeddings=False, dtype="bfloat16")
    config.num_hidden_layers = layers or config.num_hidden_layers
    whole = make(folder / "whole", config)
    row: dict[str, Any] = {"parameters": whole, "peak while made": peak()}
    ids = [
        torch.randint(config.vocab_size, (2, tokens), generator=torch.Generator().manual_seed(i))
        for i in range(2)
    ]
    data = fp.Calibration(ids, forward=lambda m, x: m(input_ids=x, use_cache=False))

    def opened(model: nn.Module, source: Path) -> fp.Program:
        program = fp.capture(model, kwargs={"input_ids": ids[0], "use_cache": False})
        return fp.open_shards(program, source, tensors=frequencies)

    model, frequencies = fp.without_weights(
        lambda: LlamaForCausalLM(config).to(torch.bfloat16).eval()
    )
    program = timed(row, "open", lambda: opened(model, folder / "whole"))
    shallow = timed(row, "layers", lambda: fp.prune_layers(program, data, deleted))
    check(*shallow.result.checks, *(c for s in shallow.result.steps for c in s.checks))
    timed(
        row,
        "write short",
        lambda: fp.apply_to_shards(
            shallow.result, folder / "whole", folder / "short", model=model, force=True
        ),
    )
    short = fp.write_back(model, shallow.result)
    program = timed(row, "open short", lambda: opened(short, folder / "short"))
    narrow = timed(row, "width", lambda: fp.prune(program, keep=keep, data=data))
    check(*narrow.report.checks)
    timed(
        row,
        "write small",
        lambda: fp.apply_to_shards(
            narrow.plan, folder / "short", folder / "small", program=program, force=True
        ),
    )
    row["MACs left"] = narrow.report.comparison.ratios["macs"]
    row["bytes"] = [bytes_of(folder / name) for name in ("whole", "short", "small")]
    row["peak"] = peak()
    print(json.dumps(row))


def timed(row: dict[str, Any], name: str, work: Callable[[], T]) -> T:
    """Runs a step, and notes its CPU and wall seconds and the peak of resident memory so far."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    seconds = [time.process_time() - cpu, time.perf_counter() - wall]
    row[name] = {"CPU s": round(seconds[0], 1), "s": round(seconds[1], 1), "peak": peak()}
    print(name, row[name], flush=True)
    return found


def check(*checks: Any) -> None:
    """Stops where anything was not verified."""
    if not checks or not all(c.ok for c in checks):
        raise SystemExit(f"not verified: {[str(c) for c in checks if not c.ok] or 'no checks'}")


def make(folder: Path, config: LlamaConfig) -> int:
    """Writes random weights, a file for each layer and one for the rest; returns how many numbers they are."""
    shards: dict[str, list[tuple[str, torch.Size]]] = {}
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    for name, tensor in state.items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else name.split(".")[-2]
        shards.setdefault(f"model-{layer}.safetensors", []).append((name, tensor.shape))
    places = {name: file for file, tensors in shards.items() for name, _ in tensors}
    count = sum(shape.numel() for tensors in shards.values() for _, shape in tensors)
    if (folder / "model.safetensors.index.json").exists():
        return count
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in shards.items():
        made = {name: _random(shape) for name, shape in tensors}
        save_file(made, folder / file, metadata={"format": "pt"})
        del made
    config.save_pretrained(folder)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return count


def _random(shape: torch.Size) -> torch.Tensor:
    """Scales of norms around 1, and weights around 0, of a deviation of .02 as they are at the start of training."""
    x = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)
    return x + 1 if len(shape) == 1 else x


def bytes_of(folder: Path) -> int:
    """The size of the weights in a folder."""
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def peak() -> int:
    """The most memory that this process has had resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    typer.run(main)
