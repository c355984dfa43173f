"""Beside Torch-Pruning, from a model to a pruned one: CPU time, and how many come out right.

    python -m benchmarks.peer [--only REGEX] [--fresh] [--render]

pytest-benchmark sets no limit to memory, all of which Torch-Pruning takes on some networks: each has a process here.
"""

from __future__ import annotations

import copy
import statistics
import warnings
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

import fxprune as fp
from benchmarks.networks import Example, Network, classifiers
from benchmarks.page import PAGE, RESULTS, markdown, verdict
from benchmarks.rows import Row, Rows, bad
from benchmarks.stages import SHARE, Laps, count, prune, warm_up
from fxprune.api import solved
from fxprune.plan import plan_removal, units_of_kept
from fxprune.verify import Silenced, noisy, relative_error

REPEATS = 2
MEDIAN, TAIL = 1.0, 3.0
TOLERANCE = 1e-6
LARGEST = 200_000_000
QUERIES, KEYS = ("q", "q_proj", "query"), ("k", "v", "k_proj", "v_proj", "key", "value")
COLUMNS = (
    *("network", "parameters", "ours s", "theirs s", "ratio", "ours removed %", "theirs removed %"),
    *("ours right", "theirs right"),
)

Tensors = dict[str, torch.Tensor]


def measure(network: Network, row: Row) -> None:
    """Both, alternating, the shortest of each; then whether each is right."""
    warm_up()
    row["network"] = network.name
    ours, theirs, why = [], [], ""
    for _ in range(REPEATS):
        laps = Laps()
        model, args, kwargs = network.build()
        row["parameters"] = whole = count(model)
        program = laps("capture", fp.capture, model, args, kwargs)
        plan, small = prune(program, laps)
        ours.append(sum(laps.values()))
        example = network.build()
        try:
            laps("theirs", prune_theirs, example)
            theirs.append(laps["theirs"])
        except Exception as error:  # any: its verdict is that it did not run
            why = f"prune: {_line(error)}"
    removed = [100 * (1 - count(m) / whole) for m in (small.module, example[0])]
    row |= {"ours s": min(ours), "ours removed %": removed[0], "theirs removed %": removed[1]}
    if theirs:
        row |= {"theirs s": min(theirs), "ratio": min(ours) / min(theirs)}
    if whole <= LARGEST:
        row["ours right"] = "yes" if fp.verify(program, plan, small).ok else "**no**"
        why = why or (judge(network.build()) if removed[1] else "nothing was removed")
        row["theirs right"] = f"no ({why})" if why else "yes"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/")[:80]


# Torch-Pruning


def prune_theirs(example: Example) -> None:
    """30 % of each of its groups at random, in place; outputs keep their width, heads are told."""
    model, args, kwargs = example
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            kwargs or args,
            importance=tp.importance.RandomImportance(),
            pruning_ratio=SHARE,
            ignored_layers=last_layers(model),
            num_heads=heads_of(model),
            output_transform=pytree.tree_leaves,
        )
        pruner.step()


def last_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that make the output: the last one with weights, and what is named like one."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    named = [x for x in layers if x[0].rpartition(".")[2] in ("lm_head", "proj_out")]
    return [m for _, m in named or layers[-1:]]


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """How many heads each attention projection of a transformers model has."""
    config = getattr(model, "config", None)
    many = getattr(config, "num_attention_heads", 0)
    few = getattr(config, "num_key_value_heads", None) or many
    heads = dict.fromkeys(QUERIES, many) | dict.fromkeys(KEYS, few)
    leaves = {m: n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {m: heads[leaf] for m, leaf in leaves.items() if many and leaf in heads}


def judge(example: Example) -> str:
    """Why its pruned model does not compute what the original does without what was removed.

    Every parameter is filled with the numbers of its own positions before pruning; afterwards they say which
    positions are left, the original values go back, and the pruned model runs in float64. It may agree with the
    original whose other positions are zero, or with our silenced reference where our labels allow the removal.

    Returns:
        Nothing where it does.
    """
    model, args, kwargs = example
    model.double()
    args, kwargs = pytree.tree_map_only(torch.Tensor, _in_double, (args, kwargs))
    tensors = _tensors(model)
    for name, tensor in noisy(tensors, 0).items():
        tensors[name].data = tensor
    values = {n: t.detach().clone() for n, t in tensors.items()}
    pruned = copy.deepcopy(model)
    for tensor in _tensors(pruned).values():
        tensor.data = torch.arange(tensor.numel()).view(tensor.shape).to(tensor)
    try:
        prune_theirs((pruned, args, kwargs))
        left = {n: t.detach().long() for n, t in _tensors(pruned).items()}
        out = _run(pruned, {n: values[n].flatten()[i] for n, i in left.items()}, args, kwargs)
    except Exception as error:  # any: its verdict is that it does not run
        return f"run: {_line(error)}"
    masked = {n: torch.zeros_like(v) for n, v in values.items()}
    for name, index in left.items():
        masked[name].view(-1)[index] = values[name].flatten()[index]
    off = _worst(out, _run(model, masked, args, kwargs))
    if off > TOLERANCE and (silenced := _silenced(model, args, kwargs, left)):
        off = min(off, _worst(out, silenced))
    return f"error {off:.0e}" if off > TOLERANCE else ""


def _silenced(model: nn.Module, args: Any, kwargs: Any, left: Tensors) -> list[Any]:
    """Our silenced reference of the same removal; nothing where our labels do not allow it."""
    program = fp.capture(model, args, kwargs)
    axes = solved(program)
    shapes = {n: tuple(t.shape) for n, t in program.tensors().items()}
    kept = {n: _kept(i, shapes[n]) for n, i in left.items() if n in axes.params}
    plan = plan_removal(program, axes, units_of_kept(axes, kept, shapes))
    for name, cut in kept.items():
        for axis, positions in cut.items():
            ours = plan.kept.get(name, {}).get(axis, np.arange(shapes[name][axis]))
            if not np.array_equal(positions, ours):
                return []
    return Silenced(program, axes, plan.removed, torch.float64).evaluate(args, kwargs)


def _kept(index: torch.Tensor, shape: tuple[int, ...]) -> dict[int, Any]:
    places = np.unravel_index(index.numpy(), shape) if shape else ()
    return {i: np.unique(p) for i, p in enumerate(places)}


def _in_double(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def _tensors(model: nn.Module) -> Tensors:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {n: t for n, t in named if t.is_floating_point()}


def _run(model: nn.Module, tensors: Tensors, args: Any, kwargs: Any) -> list[Any]:
    with torch.no_grad():
        return pytree.tree_leaves(functional_call(model.eval(), tensors, args, kwargs))


def _worst(found: list[Any], reference: list[Any]) -> float:
    return max(relative_error(a, b) for a, b in zip(found, reference, strict=True))


def render(rows: list[Row], wanted: int) -> str:
    """The block of the page."""
    ratios = [r["ratio"] for r in rows if r.get("ratio")]
    judged = [r for r in rows if "ours right" in r]
    right = (sum(r[f"{who} right"] == "yes" for r in judged) for who in ("ours", "theirs"))
    lines = ["- Of {} models judged, right: ours {}, theirs {}.".format(len(judged), *right)]
    if len(ratios) > 1:
        middle, tail = statistics.median(ratios), statistics.quantiles(ratios, n=10)[-1]
        lines.append(
            f"- Ratio, of {len(ratios)} of {wanted} models: median {middle:.2f} ({verdict(middle <= MEDIAN)}), "
            f"90th percentile {tail:.2f} ({verdict(tail <= TAIL)})."
        )
    return "\n".join((*lines, *bad(rows), "", markdown(COLUMNS, rows)))


if __name__ == "__main__":
    Rows(
        RESULTS / "peer.jsonl", measure, PAGE, "Beside Torch-Pruning 1.6.1", render, classifiers
    ).run()
