"""What modules inside a network return, of a model and of a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.algebra.label import IntArray
from fxprune.analysis.cache import solved
from fxprune.errors import OptionError
from fxprune.graph.evaluate import flat_inputs
from fxprune.graph.program import Program, module_path
from fxprune.plan import Plan
from fxprune.shrink.tensors import slice_axes

Network = nn.Module | Program
Kept = Mapping[str, Mapping[int, IntArray]]


class Watched:
    """A network whose inner outputs are kept while it runs.

    Args:
        network: a model or a program.
        paths: of the modules whose outputs are kept.
    """

    def __init__(self, network: Network, paths: Sequence[str]) -> None:
        self._network, self._paths = network, set(paths)
        self.module = network.module if isinstance(network, Program) else network

    def run(self, call: Callable[[nn.Module], Any]) -> tuple[Any, dict[str, Tensor]]:
        """What `call` returns for the network, and the last output of each module."""
        found: dict[str, Tensor] = {}
        if not self._paths:
            return call(self.module), found
        if isinstance(self._network, Program):
            return call(_Interpreted(self._network, self._paths, found)), found
        with ExitStack() as hooks:
            for path in self._paths:
                hook = self.module.get_submodule(path).register_forward_hook(_keep(found, path))
                hooks.callback(hook.remove)
            return call(self.module), found


def find_paths(student: Network, teacher: Network, globs: Sequence[str]) -> list[str]:
    """The paths of modules that both networks have and that a glob matches.

    Raises:
        OptionError: a glob matches none.
    """
    both = sorted(_paths(student) & _paths(teacher))
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in both):
            raise OptionError(
                f"no module of both networks is called {glob!r}",
                where="features",
                why=f"they have {', '.join(both[:6])}, ...",
                do="give paths of modules, or globs of them",
            )
    return [p for p in both if any(fnmatchcase(p, g) for g in globs)]


def kept_positions(teacher: Network, plan: Plan | None, paths: Sequence[str]) -> Kept:
    """The positions that a plan leaves of what modules of the teacher return, by path and axis.

    Raises:
        OptionError: the teacher is not a program, whose axes the plan is of.
    """
    if plan is None or not paths:
        return {}
    if not isinstance(teacher, Program):
        raise OptionError(
            "the plan is of a program, and the teacher is a model",
            where="plan",
            do="give outcome.original as the teacher",
        )
    axes = solved(teacher)
    gone = np.zeros(axes.n_units, bool)
    gone[plan.removed] = True
    kept = {}
    for path, node in _last_nodes(teacher, paths).items():
        labels = axes.nodes.get(node)
        if isinstance(labels, tuple):
            lost = {i: axes.removed(label, gone) for i, label in enumerate(labels)}
            kept[path] = {i: np.flatnonzero(~x) for i, x in lost.items() if x.any()}
    return kept


def in_common(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], kept: Kept
) -> dict[str, tuple[Tensor, Tensor]]:
    """What modules of both return, at the same positions; modules of which these are not known are left out."""
    pairs = {}
    for path, found in student.items():
        if path not in teacher:
            continue
        wanted = teacher[path]
        if found.shape != wanted.shape and path in kept:
            wanted = slice_axes(wanted, dict(kept[path]))
        if found.shape == wanted.shape and found.is_floating_point():
            pairs[path] = (found, wanted)
    return pairs


def _paths(network: Network) -> set[str]:
    if isinstance(network, Program):
        return set(_last_nodes(network, None))
    return {path for path, _ in network.named_modules() if path}


def _last_nodes(program: Program, paths: Sequence[str] | None) -> dict[str, fx.Node]:
    """The last node of each module with a tensor for its value, also of those around others."""
    found: dict[str, fx.Node] = {}
    for node in program.nodes:
        if node.op in ("call_function", "call_module") and isinstance(node.meta.get("val"), Tensor):
            parts = module_path(node).split(".")
            for length in range(1, len(parts) + 1):
                found[".".join(parts[:length])] = node
    found.pop("", None)
    return found if paths is None else {p: found[p] for p in paths if p in found}


def _keep(found: dict[str, Tensor], path: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor):
            found[path] = first

    return hook


class _Interpreted(nn.Module):
    """A program that is run node by node, to see values inside."""

    def __init__(self, program: Program, paths: set[str], found: dict[str, Tensor]) -> None:
        super().__init__()
        wanted: dict[fx.Node, list[str]] = {}
        for path, node in _last_nodes(program, sorted(paths)).items():
            wanted.setdefault(node, []).append(path)
        self._run = _Interpreter(program.module, wanted, found)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        module = self._run.module
        assert isinstance(module, fx.GraphModule)
        out = self._run.run(*flat_inputs(module, args, kwargs), enable_io_processing=False)
        return module.graph.process_outputs(out)


class _Interpreter(fx.Interpreter):
    def __init__(
        self, module: fx.GraphModule, wanted: dict[fx.Node, list[str]], found: dict[str, Tensor]
    ) -> None:
        super().__init__(module)
        self._wanted, self._found = wanted, found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self._found.update(dict.fromkeys(self._wanted.get(n, ()), value))
        return value
