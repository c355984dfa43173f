"""Which nodes of two programs do the same to what they are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fxprune.graph.leaf import Leaf
from fxprune.graph.program import Program
from fxprune.torch_private import pytree_specs

Pair = tuple[fx.Node, fx.Node]
"""A node of the program before, and one of the program after."""


class Matching:
    """Pairs the nodes of two programs that have the same name and do the same to what they are given.

    What they are given may differ: what is fed to a pair in the same place has to agree for the two to agree.

    Attributes:
        twins: for a node of the program before, the node of the program after that does the same.
    """

    def __init__(self, before: Program, after: Program) -> None:
        self.before, self.after = before, after
        named = {n.name: n for n in after.nodes}
        self._tensors: dict[tuple[str, str], bool] = {}
        pairs = ((n, named[n.name]) for n in before.nodes if n.name in named)
        self.twins = {a: b for a, b in pairs if self._alike(a, b)}

    @property
    def objection(self) -> str:
        """Why the two cannot be compared region by region; "" where they can."""
        inputs = [list(p.graph.find_nodes(op="placeholder")) for p in (self.before, self.after)]
        if [self.twins.get(n) for n in inputs[0]] != inputs[1]:
            return "the inputs are others"
        if pytree_specs(self.before.graph) != pytree_specs(self.after.graph):
            return "the inputs or outputs are nested in another way"
        if self.before.graph.output_node() not in self.twins:
            return "the outputs are others"
        if self.before.training != self.after.training:
            return "one is in train mode and the other in eval mode"
        return ""

    def agrees(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether two nodes do the same."""
        return self.twins.get(a) is b

    def fed(self, a: fx.Node, b: fx.Node) -> list[Pair]:
        """What is fed to two nodes that do the same, place by place."""
        return list(zip(_spelled(a)[1], _spelled(b)[1], strict=True))

    def same_tensor(self, ours: str, theirs: str) -> bool:
        """Whether a tensor of the program before and one of the program after hold the same numbers."""
        key = ours, theirs
        if key not in self._tensors:
            a, b = attribute(self.before.module, ours), attribute(self.after.module, theirs)
            self._tensors[key] = a is b or (
                isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and _equal(a, b)
            )
        return self._tensors[key]

    def _alike(self, a: fx.Node, b: fx.Node) -> bool:
        if (a.op, str(a.target)) != (b.op, str(b.target)) or _spelled(a)[0] != _spelled(b)[0]:
            return False
        if a.op == "get_attr":
            return self.same_tensor(str(a.target), str(b.target))
        if a.op == "call_module":
            return _same_leaf(*(p.module.get_submodule(str(a.target)) for p in self._programs))
        return a.op != "call_function" or a.target == b.target

    @property
    def _programs(self) -> tuple[Program, Program]:
        return self.before, self.after


def attribute(module: nn.Module, target: str) -> Any:
    """What a get_attr node reads."""
    path, _, leaf = target.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


def _spelled(node: fx.Node) -> tuple[str, list[fx.Node]]:
    """The arguments of a node as text with a mark in place of each node, and these nodes."""
    inputs: list[fx.Node] = []

    def mark(value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        inputs.append(value)
        return _MARK

    text = repr(fx.node.map_aggregate((node.args, node.kwargs), mark))
    return text, inputs


class _Mark:
    def __repr__(self) -> str:
        return "<node>"


_MARK = _Mark()


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers of the same type."""
    if (a.dtype, a.shape, a.device, a.layout) != (b.dtype, b.shape, b.device, b.layout):
        return False
    return not a.is_meta and torch.equal(a, b)


def _same_leaf(a: nn.Module, b: nn.Module) -> bool:
    if not (isinstance(a, Leaf) and isinstance(b, Leaf)) or type(a) is not type(b):
        return a is b
    ours, theirs = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (a, b))
    if ours.keys() != theirs.keys() or _options(a) != _options(b):
        return False
    return all(x is theirs[name] or _equal(x, theirs[name]) for name, x in ours.items())


def _options(leaf: Leaf) -> str:
    """What a leaf module has besides its tensors, as text."""
    return repr(sorted((k, repr(v)) for k, v in vars(leaf).items() if not k.startswith("_")))
