"""Readable names for parts of a graph, taken from the modules that created them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from torch import fx

from fxprune.graph.program import module_path
from fxprune.structure.paths import Flow

Part = tuple[fx.Node, frozenset[fx.Node]]


def class_of(nodes: Iterable[fx.Node]) -> dict[str, str]:
    """Returns the class name of every module in which a node was created, by path."""
    found: dict[str, str] = {}
    for node in nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            name = kind if isinstance(kind, str) else kind.__name__
            found.setdefault(path, name.rsplit(".", 1)[-1])
    return found


def unique_paths(parts: Sequence[Part], flow: Flow, root: str) -> list[tuple[str, str]]:
    """Returns a unique name for each part of a graph, and the path of the module that the part belongs to.

    The name is the path of the innermost module that created the whole part. If that is the network itself
    or a module with several parts, the child with most of the part's weights is named instead; parts that
    still have equal names are numbered.

    Args:
        parts: each part as a node and the set of nodes that belong to it.
        flow: the flow of the program.
        root: the name of the network, for parts that belong to no module.
    """
    path = {n: module_path(n) for n in flow.order}
    weight = _weights(flow)
    scopes = [common_path({path[end], *map(path.__getitem__, nodes)}) for end, nodes in parts]
    count = Counter(scopes)
    finer = [
        scope if scope and count[scope] == 1 else _heaviest_child(scope, nodes, path, weight)
        for scope, (_, nodes) in zip(scopes, parts, strict=True)
    ]
    again = Counter(finer)
    seen: Counter[str] = Counter()
    names = []
    for name in finer:
        seen[name] += 1
        names.append(f"{name or root}#{seen[name]}" if again[name] > 1 else name or root)
    return list(zip(names, finer, strict=True))


def common_path(paths: AbstractSet[str]) -> str:
    """Returns the longest dotted path with which all paths begin."""
    parts = [p.split(".") if p else [] for p in paths]
    first, last = min(parts), max(parts)
    same = [a == b for a, b in zip(first, last, strict=False)]
    return ".".join(first[: same.index(False) if False in same else len(same)])


def _weights(flow: Flow) -> dict[fx.Node, int]:
    """Returns the number of parameter elements that each node reads, for nodes that read any."""
    read = {n: [s for s in flow.inputs[n] if s in flow.parameters] for n in flow.order}
    return {n: sum(flow.parameters[s].numel() for s in own) for n, own in read.items() if own}


def _heaviest_child(
    scope: str, nodes: frozenset[fx.Node], path: dict[fx.Node, str], weight: dict[fx.Node, int]
) -> str:
    """Returns the child of a module whose parameters among some nodes are largest, or the module if there is none."""
    total: Counter[str] = Counter()
    start = len(scope) + 1 if scope else 0
    for node in nodes & weight.keys():
        if len(path[node]) > len(scope):
            total[path[node][start:].partition(".")[0]] += weight[node]
    if not total:
        return scope
    return f"{scope}.{max(sorted(total), key=lambda c: total[c])}".lstrip(".")
