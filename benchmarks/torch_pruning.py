"""From a model to a pruned one, beside Torch-Pruning: CPU time, and how many come out right."""

from __future__ import annotations

import copy
import statistics
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.bench import Clock, Row, markdown, verdict
from benchmarks.networks import Example
from benchmarks.share import compared, prune, warm_up
from benchmarks.zoo import SHARE

THREADS = 1
ALONE = False
REPEATS = 2
MEDIAN, TAIL = 1.5, 1.0
TOLERANCE = 1e-6
LARGEST = 200_000_000

Tensor = torch.Tensor
Tensors = dict[str, Tensor]


def cases() -> list[str]:
    """One for each network."""
    return list(compared())


def measure(case: str) -> Row:
    """Both, alternating, the shortest of each; then whether each is right."""
    warm_up()
    network = compared()[case]
    ours, theirs = [], []
    row: Row = {}
    for _ in range(REPEATS):
        clock = Clock()
        made = prune(clock, network.build())
        ours.append(clock.total)
        example = network.build()
        whole = _count(example[0])
        try:
            clock("theirs", lambda e=example: prune_theirs(e))  # type: ignore[misc]
            theirs.append(clock.seconds["theirs"])
        except Exception as error:  # any: its verdict is "did not run"
            row["theirs_why"] = f"prune: {type(error).__name__}: {error}"[:200]
    row |= {"ours": min(ours), "theirs": min(theirs, default=None), "parameters": whole}
    row["ours_removed"] = 1 - _count(made["small"].module) / whole
    row["theirs_removed"] = 1 - _count(example[0]) / whole
    if whole <= LARGEST:
        row |= {"ours_right": _check_ours(made), "theirs_right": False}
        if theirs and not row["theirs_removed"]:
            row["theirs_why"] = "nothing was removed"
        elif theirs:
            row |= judge(network.build())
    return row


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _check_ours(made: Mapping[str, Any]) -> bool:
    from fxprune.verify import compare_programs

    return compare_programs(made["program"], made["axes"], made["plan"], made["small"]).ok


# Torch-Pruning


def prune_theirs(example: Example) -> None:
    """30 % of each of its groups at random, in place; outputs keep their width, heads are told."""
    import torch_pruning as tp

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
    layers: dict[str, nn.Module] = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    }
    named = [m for n, m in layers.items() if n.rpartition(".")[2] in ("lm_head", "proj_out")]
    return named or list(layers.values())[-1:]


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """How many heads each attention projection of a transformers model has."""
    config = getattr(model, "config", None)
    many = getattr(config, "num_attention_heads", 0)
    few = getattr(config, "num_key_value_heads", None) or many
    found: dict[nn.Module, int] = {}
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if many and isinstance(module, nn.Linear) and leaf in (*_QUERIES, *_KEYS):
            found[module] = many if leaf in _QUERIES else few
    return found


_QUERIES = ("q", "q_proj", "query")
_KEYS = ("k", "v", "k_proj", "v_proj", "key", "value")


def judge(example: Example) -> Row:
    """Whether its pruned model computes what the original does without what was removed.

    Every parameter is filled with the numbers of its own positions before pruning; afterwards they say
    which positions are left, the original values go back, and the pruned model runs in float64.
    """
    model, args, kwargs = _to_float64(example)
    values = _noisy(model)
    pruned = copy.deepcopy(model)
    _fill(pruned, {n: torch.arange(t.numel()).view(t.shape) for n, t in values.items()})
    try:
        prune_theirs((pruned, args, kwargs))
        left = {n: t.detach().long() for n, t in _tensors(pruned).items()}
        _fill(pruned, {n: values[n].flatten()[i] for n, i in left.items()})
        out = _run(pruned, args, kwargs)
    except Exception as error:  # any: its verdict is "does not run"
        return {"theirs_why": f"run: {type(error).__name__}: {error}"[:200]}
    errors = _errors(model, args, kwargs, values, left, out)
    right = min(errors.values()) <= TOLERANCE
    return {"theirs_right": right, "theirs_errors": errors}


def _errors(
    model: nn.Module, args: Any, kwargs: Any, values: Tensors, left: Tensors, out: list[Any]
) -> dict[str, float]:
    """The error against two references; either agreeing will do."""
    from fxprune.verify import relative_error

    def worst(reference: list[Any]) -> float:
        return max(relative_error(a, b) for a, b in zip(out, reference, strict=True))

    masked = {n: torch.zeros_like(v) for n, v in values.items()}
    for name, index in left.items():
        masked[name].view(-1)[index] = values[name].flatten()[index]
    _fill(model, masked)
    errors = {"masked": worst(_run(model, args, kwargs))}
    _fill(model, values)
    if errors["masked"] > TOLERANCE and (found := _silenced(model, args, kwargs, left)):
        errors["silenced"] = worst(found)
    return errors


def _silenced(model: nn.Module, args: Any, kwargs: Any, left: Tensors) -> list[Any]:
    """Our silenced reference of the same removal; nothing where our labels do not allow it."""
    from fxprune.analysis.solve import solve
    from fxprune.capture import capture
    from fxprune.plan import plan_removal, units_of_kept
    from fxprune.verify import Silenced

    program = capture(model, args, kwargs)
    axes = solve(program)
    shapes = {n: tuple(t.shape) for n, t in program.tensors().items()}
    kept = {n: _kept(i, shapes[n]) for n, i in left.items() if n in axes.params}
    plan = plan_removal(program, axes, units_of_kept(axes, kept, shapes))
    same = all(
        np.array_equal(positions, plan.kept.get(name, {}).get(axis, np.arange(shapes[name][axis])))
        for name, cut in kept.items()
        for axis, positions in cut.items()
    )
    if not same:
        return []
    return Silenced(program, axes, plan.removed, torch.float64).evaluate(args, kwargs)


def _kept(index: Tensor, shape: tuple[int, ...]) -> dict[int, Any]:
    places = np.unravel_index(index.numpy(), shape) if shape else ()
    return {i: np.unique(p) for i, p in enumerate(places)}


def _to_float64(example: Example) -> Example:
    model, args, kwargs = example
    cast = partial(
        pytree.tree_map_only, Tensor, lambda x: x.double() if x.is_floating_point() else x
    )
    return model.double(), cast(args), cast(kwargs)


def _tensors(model: nn.Module) -> Tensors:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {n: t for n, t in named if t.is_floating_point()}


def _noisy(model: nn.Module) -> Tensors:
    """The model's tensors, with noise where all values are one: in the model, and returned."""
    values = {n: t.detach().clone() for n, t in _tensors(model).items()}
    for value in values.values():
        if value.numel() > 1 and bool((value == value.flatten()[0]).all()):
            value += 0.1 + torch.rand_like(value)
    _fill(model, values)
    return values


def _fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.data = values[name].to(tensor.dtype).clone()


def _run(model: nn.Module, args: Any, kwargs: Any) -> list[Any]:
    with torch.no_grad():
        return pytree.tree_leaves(model.eval()(*args, **kwargs))


# The section of the page

_BOTH = ("ours removed", "theirs removed", "ours right", "theirs right")

_TEXT = """## Beside Torch-Pruning 1.6.1

From a model to a pruned one: ours is capture + solve + groups + plan + shrink, without verification;
theirs is `BasePruner(...)` and `step()`, in place, with random importance, its output layers ignored
and the numbers of heads given. Both remove 30 % of each of their groups, at random. They alternate in
one process; the shorter CPU time of {repeats} each. Ratio: ours over theirs, where theirs ends without an
error. Wanted: median at most {median}, 90th percentile at most {tail}.

*Right*, ours: `fp.verify` in float64, against the silenced original. *Right*, theirs: every parameter
carries the numbers of its positions through the pruning, so that what was removed is known exactly; the
pruned model must run and agree within {tolerance} in float64 with the original whose removed
positions are zero, or with our silenced reference of the same removal (for norms, means and attention
scales): either will do. Where nothing was removed, nothing was got right. A process that ended with -9 was
stopped while Torch-Pruning held more than 15 GB, and growing, on a machine of 24.
"""


def render(rows: Sequence[Row]) -> str:
    """The section of the page."""
    timed = [r for r in rows if r.get("theirs")]
    ratios = sorted(r["ours"] / r["theirs"] for r in timed)
    lines = [
        _TEXT.format(repeats=REPEATS, median=MEDIAN, tail=TAIL, tolerance=TOLERANCE),
        *([_summary(ratios)] if len(ratios) > 1 else []),
        _counts(rows),
    ]
    head = ("network", "parameters", "ours s", "theirs s", "ratio", *_BOTH)
    return "\n".join(lines) + "\n" + markdown(head, (_cells(r) for r in rows if "ours" in r))


def _summary(ratios: list[float]) -> str:
    median, tail = statistics.median(ratios), statistics.quantiles(ratios, n=10)[-1]
    return (
        f"- {len(ratios)} models timed of {len(cases())}. Ratio: median {median:.2f} ({verdict(median <= MEDIAN)}), "
        f"90th percentile {tail:.2f} ({verdict(tail <= TAIL)})."
    )


def _counts(rows: Sequence[Row]) -> str:
    judged = [r for r in rows if "ours_right" in r]
    ours, theirs = (sum(r[k] for r in judged) for k in ("ours_right", "theirs_right"))
    text = f"- Of {len(judged)} models judged, right: ours {ours}, theirs {theirs}."
    return text + f" Models of more than {LARGEST // 10**6} M parameters are timed, not judged.\n"


def _cells(row: Row) -> tuple[str, ...]:
    theirs = row["theirs"]
    return (
        row["case"],
        f"{row['parameters']:,}",
        f"{row['ours']:.2f}",
        f"{theirs:.2f}" if theirs else "",
        f"{row['ours'] / theirs:.2f}" if theirs else "",
        *(f"{100 * row[k]:.0f} %" for k in ("ours_removed", "theirs_removed")),
        _said(row.get("ours_right")),
        _said(row.get("theirs_right")) + (f" ({_why(row)})" if _why(row) else ""),
    )


def _said(right: bool | None) -> str:
    return "not judged" if right is None else "yes" if right else "no"


def _why(row: Row) -> str:
    if "theirs_why" in row:
        return str(row["theirs_why"]).splitlines()[0].replace("|", "/")[:80]
    if row.get("theirs_right") is False:
        return f"error {min(row['theirs_errors'].values()):.0e}"
    return ""
