"""The modules of a model that have nothing to do any more, and what is left of their work."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import fx, nn

from fxprune.graph.program import Program, module_path
from fxprune.structure.paths import Flow
from fxprune.write_back.changes import prefixes
from fxprune.write_back.layers.zeros import Silent

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@dataclass(frozen=True)
class Dead:
    """A module none of whose weights is needed.

    Attributes:
        path: of the module.
        left: what is left of what it returns: something that is not 0, zeros, or nothing that is read.
    """

    path: str
    left: Literal["value", "zeros", "nothing"]


class Work:
    """The work of each module, as nodes that read weights.

    Args:
        program: the captured network.
        model: what was captured.
    """

    def __init__(self, program: Program, model: nn.Module) -> None:
        self.program, self.model = program, model
        self._flow = Flow.of(program)
        self._modules = dict(model.named_modules(remove_duplicate=False))

    @cached_property
    def _weighted(self) -> dict[str, list[str]]:
        """The names of the nodes that read weights, by the path of every module that contains their module."""
        found: dict[str, list[str]] = {}
        for node in self._flow.order:
            if node.op != "get_attr" and any(
                s in self._flow.trained for s in self._flow.inputs[node]
            ):
                for path in prefixes(module_path(node)):
                    found.setdefault(path, []).append(node.name)
        return found

    @cached_property
    def _ends(self) -> dict[str, list[fx.Node]]:
        """The nodes that are read outside of a module that made them, by the path of that module."""
        found: dict[str, list[fx.Node]] = {}
        for node in self._flow.order:
            inside = _stack(node)
            for path in inside:
                if any(path not in _stack(r) for r in self._flow.readers[node]):
                    found.setdefault(path, []).append(node)
        return found

    def dead(self, silent: Silent) -> list[Dead]:
        """The largest modules that have nothing to do; in place of lists and chains of such modules, their elements."""
        largest = self._largest("", silent)
        zeros = self._last_before_zeros(largest, silent)
        return [d for p in largest for d in self._elements(p, silent, zeros)]

    def within(self, path: str, silent: Silent) -> list[Dead]:
        """The largest modules inside a module that have nothing to do."""
        largest = self._largest(path, silent)
        zeros = self._last_before_zeros(largest, silent)
        return [self._state(p, silent, zeros) for p in largest]

    def _idle(self, path: str, silent: Silent) -> bool:
        names = self._weighted.get(path)
        return names is not None and silent.live.isdisjoint(names)

    def _largest(self, inside: str, silent: Silent) -> list[str]:
        start = f"{inside}." if inside else ""
        idle = {p for p in self._weighted if p.startswith(start) and self._idle(p, silent)}
        idle.discard("")
        largest = [p for p in idle if not any(o in idle for o in prefixes(p) if o != p)]
        return sorted(largest, key=self._order)

    def weighted(self, path: str) -> frozenset[str]:
        """The names of the nodes in a module that read weights."""
        return frozenset(self._weighted.get(path, ()))

    def _last_before_zeros(self, paths: Collection[str], silent: Silent) -> set[str]:
        """The modules among some that made what then was set to 0, with nothing but plain operators behind them."""
        found: set[str] = set()
        waiting = [n for n in self._flow.order if n.name in silent.names]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            owner = next((p for p in prefixes(module_path(node)) if p in paths), None)
            if owner is not None:
                found.add(owner)
                continue
            new = {s for s in self._flow.inputs[node] if s.name not in silent.live} - seen
            seen |= new
            waiting += new
        return found

    def _elements(self, path: str, silent: Silent, zeros: Collection[str]) -> Iterator[Dead]:
        state, module = self._state(path, silent, zeros), self._modules.get(path)
        parent = self._modules.get(path.rpartition(".")[0])
        plain = isinstance(module, nn.ModuleList | nn.ModuleDict) and not isinstance(parent, LISTS)
        chain = isinstance(module, nn.Sequential) and state.left == "value"
        if module is None or not (plain or chain):
            yield state
            return
        for name in module._modules:
            if self._idle(f"{path}.{name}", silent):
                yield from self._elements(f"{path}.{name}", silent, zeros)

    def _state(self, path: str, silent: Silent, zeros: Collection[str]) -> Dead:
        ends = self._ends.get(path, [])
        if any(silent.passes_on(n.name) for n in ends):
            return Dead(path, "value")
        zero = path in zeros or any(n.name in silent.zero for n in ends)
        return Dead(path, "zeros" if zero else "nothing")

    def _order(self, path: str) -> int:
        return list(self._modules).index(path) if path in self._modules else -1


def _stack(node: fx.Node) -> frozenset[str]:
    stack: Mapping[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    return frozenset(path for path, _ in stack.values())
