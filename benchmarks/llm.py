"""Llama with grouped-query attention, 8B and 70B, on meta: time and memory up to a plan.

    python -m benchmarks.llm [--only REGEX] [--fresh] [--render]

pytest-benchmark measures no memory: here each model has a process of its own, whose peak is the model's.
"""

from __future__ import annotations

import resource
import time
from functools import partial
from importlib import import_module

import torch

import fxprune as fp
from benchmarks.networks import Example, Network
from benchmarks.page import PAGE, RESULTS, markdown, verdict
from benchmarks.rows import Row, Rows, bad
from benchmarks.stages import Laps, count, decide

# Name -> width, width of the feed-forward layers, layers, heads; the seconds and the GB that are wanted at most.
SIZES = {
    "Llama 8B": ((4096, 14336, 32, 32), (30, 2)),
    "Llama 70B": ((8192, 28672, 80, 64), (60, 4)),
}
COLUMNS = (
    *("network", "parameters", "nodes", "units", "groups", "capture s", "solve s", "groups s"),
    *("plan s", "total s", "peak GB", "imports s", "imports GB"),
)


def networks() -> list[Network]:
    """Both models."""
    return [Network(name, "meta", partial(build, name)) for name in SIZES]


def build(name: str) -> Example:
    """A model without weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = dict(zip(keys, SIZES[name][0], strict=True)) | {"max_position_embeddings": 8192}
    config = LlamaConfig(**sizes, num_key_value_heads=8, vocab_size=128256, use_cache=False)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    return model, (), {"input_ids": torch.zeros(2, 16, dtype=torch.int64)}


def measure(network: Network, row: Row) -> None:
    """Seconds by stage, and what imports alone took of time and memory."""
    import_module("transformers.models.llama.modeling_llama")
    row["imports s"] = time.process_time()
    row["imports GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    model, args, kwargs = network.build()
    laps = Laps()
    program = laps("capture", fp.capture, model, args, kwargs)
    axes, groups, _ = decide(program, laps)
    row |= {"nodes": len(program.graph.nodes), "units": axes.n_units - 1, "groups": len(groups)}
    row |= {"parameters": count(model), "total s": sum(laps.values())}
    row |= {f"{stage} s": seconds for stage, seconds in laps.items()}


def render(rows: list[Row], wanted: int) -> str:
    """The block of the page."""
    lines = [f"- {len(rows)} of {wanted} models measured."]
    for r in rows:
        (seconds, gb), total = SIZES[r["name"]][1], r.get("total s", float("inf"))
        lines.append(
            f"- {r['name']}: {total:.1f} s (at most {seconds} s: {verdict(total <= seconds)}), "
            f"{r['peak GB']:.2f} GB (at most {gb} GB: {verdict(r['peak GB'] <= gb)})."
        )
    return "\n".join((*lines, *bad(rows), "", markdown(COLUMNS, rows)))


if __name__ == "__main__":
    Rows(
        RESULTS / "llm.jsonl", measure, PAGE, "Large language models on meta", render, networks
    ).run()
