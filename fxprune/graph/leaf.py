"""Modules that stay one node of a graph: gates and observers."""

from __future__ import annotations

import copy
from typing import Any, Self

from torch import fx, nn


class Leaf(nn.Module):
    """A module that a graph calls as one node, `path(value, axis)`: its result is like `value`.

    Its parameters and buffers have one entry for each position of that axis of the value, or a single one.
    Fewer entries than positions stand for equal runs of these, or with `tiled`, the last argument of four,
    for every n-th of them.

    Attributes:
        frozen: whether a forward leaves what the module gathers as it is.
    """

    frozen: bool = False

    def clone(self) -> Self:
        """Another module that shares this one's tensors until one of the two is given others."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict | set):
                vars(twin)[name] = copy.copy(value)
        return twin


def leaf_of(root: nn.Module, node: fx.Node) -> Leaf | None:
    """The leaf module that a node calls; None where it calls none."""
    found: Any = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    return found if isinstance(found, Leaf) else None


def is_inside_leaf(root: nn.Module, tensor: str) -> bool:
    """Whether a parameter or buffer belongs to a leaf module."""
    return isinstance(root.get_submodule(tensor.rpartition(".")[0]), Leaf)
