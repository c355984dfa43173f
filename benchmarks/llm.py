"""Llama with grouped-query attention, 8B and 70B, on meta: time and memory up to a plan."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence

from benchmarks.bench import Clock, Row, markdown, verdict
from benchmarks.zoo import draw

THREADS = 1
ALONE = True
GB = 1e9
SIZES = {
    "Llama 8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "Llama 70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
LIMITS = {"Llama 8B": (30.0, 2.0), "Llama 70B": (60.0, 4.0)}
STAGES = ("capture", "solve", "groups", "plan")


def cases() -> list[str]:
    """One for each size."""
    return list(SIZES)


def measure(case: str) -> Row:
    """Seconds by stage, resident memory, and what imports alone took of both."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fxprune.analysis.group import find_groups
    from fxprune.analysis.solve import solve
    from fxprune.capture import capture
    from fxprune.plan import plan_removal

    config = LlamaConfig(
        **SIZES[case],
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        use_cache=False,
    )
    imports = {"seconds": time.process_time(), "gb": _resident()}
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    clock = Clock()
    program = clock("capture", lambda: capture(model, (), {"input_ids": tokens}))
    axes = clock("solve", lambda: solve(program))
    groups = clock("groups", lambda: find_groups(axes))
    plan = clock("plan", lambda: plan_removal(program, axes, draw(groups, 0)))
    return {
        "imports": imports,
        "seconds": clock.seconds,
        "gb": _resident(),
        "nodes": len(program.graph.nodes),
        "units": axes.n_units - 1,
        "groups": len(groups),
        "cut": len(plan.kept),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _resident() -> float:
    """The most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB


def render(rows: Sequence[Row]) -> str:
    """The section of the page."""
    good = [r for r in rows if "seconds" in r]
    lines = [
        "## Large language models on meta\n",
        "From transformers' config, grouped-query attention with 8 key-value heads, a vocabulary of",
        "128256; no weights exist. A fresh process each. *Total* is capture + solve + groups + plan",
        "(30 % of each group, at random); imports of torch and transformers are beside it. *Resident*",
        "is the peak of the process, imports included.\n",
    ]
    for r in good:
        seconds, gb = LIMITS[r["case"]]
        total = sum(r["seconds"].values())
        lines.append(
            f"- {r['case']}: {total:.1f} s (wanted {seconds:.0f} s, {verdict(total <= seconds)}), "
            f"{r['gb']:.2f} GB (wanted {gb:.0f} GB, {verdict(r['gb'] <= gb)})."
        )
    head = (
        *("model", "parameters", "nodes", "units", "groups"),
        *(f"{s} s" for s in STAGES),
        *("total s", "resident GB", "imports s", "imports GB"),
    )
    return "\n".join(lines) + "\n\n" + markdown(head, map(_cells, good))


def _cells(row: Row) -> tuple[str, ...]:
    seconds = row["seconds"]
    return (
        row["case"],
        f"{row['parameters'] / 1e9:.1f} B",
        *(f"{row[k]:,}" for k in ("nodes", "units", "groups")),
        *(f"{seconds[s]:.2f}" for s in STAGES),
        f"{sum(seconds.values()):.2f}",
        f"{row['gb']:.2f}",
        f"{row['imports']['seconds']:.2f}",
        f"{row['imports']['gb']:.2f}",
    )
