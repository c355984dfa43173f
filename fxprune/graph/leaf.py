"""Leaf modules: modules that stay a single node of the graph, such as gates and observers."""

from __future__ import annotations

import copy
from typing import Any, Self

from torch import fx, nn


class Leaf(nn.Module):
    """A module that the graph calls as one node, `path(value, axis)`; its output is shaped like `value`.

    Its parameters and buffers have one entry for each position of that axis, or a single entry. If
    there are fewer entries than positions, each applies to a run of positions of equal length, or
    to every n-th position if the fourth argument, `tiled`, is true.

    Attributes:
        frozen: whether a forward pass leaves the statistics that the module gathers unchanged.
    """

    frozen: bool = False

    def clone(self) -> Self:
        """Returns a shallow copy that shares this module's tensors until either of the two replaces them."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict | set):
                vars(twin)[name] = copy.copy(value)
        return twin


def leaf_of(root: nn.Module, node: fx.Node) -> Leaf | None:
    """Returns the leaf module that a node calls, or None."""
    found: Any = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    return found if isinstance(found, Leaf) else None


def is_inside_leaf(root: nn.Module, tensor: str) -> bool:
    """Returns whether a parameter or buffer belongs to a leaf module."""
    return isinstance(root.get_submodule(tensor.rpartition(".")[0]), Leaf)
