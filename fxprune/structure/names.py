"""Readable names for parts of a graph: the module they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from torch import fx

from fxprune.graph.program import module_path
from fxprune.structure.paths import Flow

Part = tuple[fx.Node, frozenset[fx.Node]]


def class_of(nodes: Iterable[fx.Node]) -> dict[str, str]:
    """Class name of every module that a node was made in, by path."""
    found: dict[str, str] = {}
    for node in nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            name = kind if isinstance(kind, str) else kind.__name__
            found.setdefault(path, name.rsplit(".", 1)[-1])
    return found


def unique_paths(parts: Sequence[Part], flow: Flow, root: str) -> list[tuple[str, str]]:
    """A name for each part of a graph, and the path of the module it is of.

    The name is the path of the innermost module that made all of the part. Where that is the network itself or has
    several parts, the child that holds most of the part's weights is named instead; what is still not told
    apart is numbered.

    Args:
        parts: a node, and the nodes that belong to it.
        flow: of the program.
        root: name of the network, for parts of no module.
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
    """The longest dotted path that all paths begin with: that of the first and last in order."""
    parts = [p.split(".") if p else [] for p in paths]
    first, last = min(parts), max(parts)
    same = [a == b for a, b in zip(first, last, strict=False)]
    return ".".join(first[: same.index(False) if False in same else len(same)])


def _weights(flow: Flow) -> dict[fx.Node, int]:
    """Elements of the parameters that each node reads, where it reads any."""
    read = {n: [s for s in flow.inputs[n] if s in flow.parameters] for n in flow.order}
    return {n: sum(flow.parameters[s].numel() for s in own) for n, own in read.items() if own}


def _heaviest_child(
    scope: str, nodes: frozenset[fx.Node], path: dict[fx.Node, str], weight: dict[fx.Node, int]
) -> str:
    """The child of a module that reads most parameter elements in some nodes; the module, if none."""
    total: Counter[str] = Counter()
    start = len(scope) + 1 if scope else 0
    for node in nodes & weight.keys():
        if len(path[node]) > len(scope):
            total[path[node][start:].partition(".")[0]] += weight[node]
    if not total:
        return scope
    return f"{scope}.{max(sorted(total), key=lambda c: total[c])}".lstrip(".")
