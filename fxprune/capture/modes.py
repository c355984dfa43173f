"""Marks the nodes of a graph that follow train and eval mode, and reports what does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx, nn

from fxprune.capture.mode_check import ModeCheck, iterates, reads_training
from fxprune.graph.mode import MODE, mode_argument
from fxprune.graph.operands import get_argument
from fxprune.graph.program import module_path
from fxprune.remark import Remark


def mark_modes(
    graph: fx.Graph,
    model: nn.Module | None,
    training: bool,
    check: ModeCheck,
    other: Mapping[fx.Node, Any],
) -> list[str]:
    """Marks the nodes that `program.train()` switches.

    Args:
        graph: the normalised graph.
        model: the model, if there is one.
        training: its mode.
        check: what running the model's code in both modes has shown.
        other: the arguments that depend on the mode as they are in the other one, where that is known.

    Returns:
        The paths of torch's own modules whose mode the graph cannot switch.
    """
    dropouts = {path: iter(values) for path, values in check.dropouts.items()}
    known = {} if model is None else dict(model.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        if node in other:
            now = get_argument(node, mode_argument(node))
            if now != other[node]:
                node.meta[MODE] = (now, other[node]) if training else (other[node], now)
        elif name := mode_argument(node):
            modules = _modules(known, node)
            owner = modules[-1] if modules else model
            rate = next(dropouts.get(module_path(node), iter(())), 0.0)
            pair = _attention(node, owner, rate) if name == "dropout_p" else (True, False)
            now = pair[0 if _is_training(owner, training) else 1]
            if get_argument(node, name) == now and _follows(modules):
                node.meta[MODE] = pair
    return sorted(_unswitchable(graph, known))


def mode_remark(
    model: nn.Module | None, paths: list[str], training: bool, failure: str
) -> list[Remark]:
    """Returns the remark that lists the modules that keep the mode in which they were captured."""
    if not paths:
        return []
    mode = "train" if training else "eval"
    alike: dict[str, list[str]] = {}
    for path in paths:
        alike.setdefault(re.sub(r"\b\d+\b", "*", path), []).append(path or "the model itself")
    shown = ", ".join(
        f"{pattern} ({len(same)} modules)" if len(same) > 1 else same[0]
        for pattern, same in alike.items()
    )
    why = (
        "their Python code reads `self.training`, and a graph records only one of the two outcomes"
    )
    known = {} if model is None else dict(model.named_modules())
    if any(iterates(known[path]) for path in paths if path in known):
        how = "at every call" if training else "never"
        why += f"; the power iteration of spectral norm runs {how}, after program.train() and eval() alike"
    return [
        Remark(
            "analysis",
            "capture.mode-fixed",
            type(model).__name__,
            f"captured in {mode} mode, in which these modules stay: {shown}",
            why + (f" (not confirmed: {failure})" if failure else ""),
            "capture the model again in the other mode; to train it, write the plan back to the model",
        )
    ]


def guess_training(graph: fx.Graph) -> bool:
    """Returns whether a graph without its model was captured in train mode."""
    named = ((n, mode_argument(n)) for n in graph.nodes)
    return any(name and bool(get_argument(n, name)) for n, name in named)


def _modules(known: Mapping[str, nn.Module], node: fx.Node) -> list[nn.Module]:
    """Returns the modules whose forwards created the node, outermost first."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return [known[p] for p in paths if p in known]


def _is_training(owner: nn.Module | None, training: bool) -> bool:
    return training if owner is None else owner.training


def _follows(modules: list[nn.Module]) -> bool:
    """Returns whether the code that created a node may have passed `training` on."""
    if modules and isinstance(modules[-1], nn.modules.batchnorm._NormBase):
        return modules[-1].momentum is not None
    return not modules or any(
        isinstance(m, fx.GraphModule) or reads_training(type(m)) for m in reversed(modules)
    )


def _attention(node: fx.Node, owner: nn.Module | None, rate: float) -> tuple[float, float]:
    """Returns the dropout of an attention call in train mode and in eval mode."""
    if isinstance(owner, nn.MultiheadAttention):
        return (owner.dropout, 0.0)
    return (max(rate, float(get_argument(node, "dropout_p"))), 0.0)


def _unswitchable(graph: fx.Graph, known: Mapping[str, nn.Module]) -> Iterator[str]:
    """Yields torch's own modules that decide in Python: a cumulative average, or dropout on weights."""
    marked = {module_path(n) for n in graph.nodes if MODE in n.meta}
    for path in {module_path(n) for n in graph.nodes} - marked:
        owner = known.get(path)
        if isinstance(owner, nn.modules.batchnorm._NormBase):
            if owner.momentum is None and owner.track_running_stats:
                yield path
        elif isinstance(owner, nn.MultiheadAttention) and owner.dropout:
            yield path
