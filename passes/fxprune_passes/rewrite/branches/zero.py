"""Follows a value that is 0 through the graph, up to the sums where it can be left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import fx

from fxprune.graph.editor import Editor
from fxprune.graph.gate import Gate
from fxprune.graph.leaf import Leaf
from fxprune.graph.operands import get_argument, is_operator
from fxprune.structure.zeros import KEEP_ZERO, PRODUCTS, bias_of, operation

aten = torch.ops.aten

_SAME = frozenset(("contiguous", "clone", "detach"))


class StuckError(Exception):
    """The 0 cannot be followed to a sum; the message says at which node and why."""


class _Zero:
    """Marks a value that is 0 everywhere."""


# A value that is the same for every sample and position is represented by a small node: it has the rank and
# the dtype of the value, and length 1 along every axis but the channel axis.
_Small = _Zero | fx.Node


def follow_zero(
    editor: Editor, gate: fx.Node, *, batch_statistics: bool = False
) -> Callable[[], None]:
    """Prepares the replacement of the value of a node by 0, with all simplifications that follow from it.

    A bias or a normalization that follows turns the 0 into a constant, which is computed once for all positions.

    Args:
        editor: the editor of the program.
        gate: the node, a gate or any other.
        batch_statistics: whether the 0 may pass a batch norm in train mode: from a constant that computes its
            bias, also in eval mode once its running mean has converged to the constant.

    Returns:
        A function that makes the replacement; until it is called, the existing nodes read what they did before.

    Raises:
        StuckError: an operator computes a value from it that differs between positions.
    """
    walk = _Walk(editor, gate, batch_statistics)

    def silence() -> None:
        for user, value in walk.sums:
            editor.replace(user, value)

    return silence


class _Walk:
    """The values known to be 0 or constant, and the sums at which following them ends."""

    def __init__(self, editor: Editor, gate: fx.Node, batch_statistics: bool) -> None:
        self.editor, self.batch_statistics = editor, batch_statistics
        self.small: dict[fx.Node, _Small] = {gate: _Zero()}
        self.sums: list[tuple[fx.Node, fx.Node]] = []
        for node in editor.nodes:
            if any(n in self.small for n in node.all_input_nodes):
                self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        if operation(node) in ("add", "sub") and self._full_operand(node) is not None:
            self.sums.append((node, self._sum(node)))
            return
        value = self._value(node)
        if value is None and self._full_operand(node) is not None and self._is_pointwise(node):
            self.sums.append((node, self._with_small(node)))
            return
        if value is None:
            if not node.users and node.op != "output":
                return
            raise StuckError(_stuck(node))
        self.small[node] = value

    def _full_operand(self, node: fx.Node) -> fx.Node | None:
        """The operand that is not small and has the shape and dtype of the result; None unless there is exactly one."""
        full = [a for a in node.args[:2] if isinstance(a, fx.Node) and a not in self.small]
        return full[0] if len(full) == 1 and _alike(full[0], node) else None

    def _sum(self, node: fx.Node) -> fx.Node:
        """The replacement of a sum: x for `x + 0`, and x plus the small node for x plus a constant."""
        full = cast(fx.Node, self._full_operand(node))
        other = node.args[1] if node.args[0] is full else node.args[0]
        small = self.small[cast(fx.Node, other)]
        if isinstance(small, fx.Node):
            return self._with_small(node)
        alpha = get_argument(node, "alpha")
        if node.args[1] is full and (alpha != 1 or operation(node) == "sub"):
            factor = -alpha if operation(node) == "sub" else alpha
            return self.editor.call(aten.mul.Tensor, (full, factor), before=node)
        return full

    def _value(self, node: fx.Node) -> _Small | None:
        if (leaf := self.editor.leaf(node)) is not None:
            return self._leaf(node, leaf)
        name = operation(node)
        first = self._of(node.args[0]) if node.args else None
        if name == "linear" or name.startswith("conv"):
            return self._weighted(node, first)
        if name == "batch_norm":
            return self._norm(node, first)
        if name in ("layer_norm", "rms_norm"):
            return self._norm_of_last(node, first)
        if self._is_zero(node, name, first):
            return _Zero()
        if self._is_uniform(node, name):
            return self._with_small(node)
        return first if name in _SAME or _is_off(node, name) else None

    def _is_uniform(self, node: fx.Node, name: str) -> bool:
        """Whether an operator computes a constant from constants when it is called on the small nodes."""
        inputs = node.all_input_nodes
        if any(isinstance(self.small.get(n, n), _Zero) for n in inputs):
            return False
        if name in ("permute", "transpose", "adaptive_avg_pool2d"):
            return True
        if name == "mean":
            rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
            axes = [d % rank for d in _numbers(get_argument(node, "dim"))]
            return bool(get_argument(node, "keepdim")) and 1 not in axes and rank == 4
        return self._is_pointwise(node) and all(
            n in self.small or _is_vector(n, node) for n in inputs
        )

    def _is_pointwise(self, node: fx.Node) -> bool:
        """Whether an operator is pointwise and none of its operands is marked as 0."""
        zeros = any(isinstance(self.small.get(n), _Zero) for n in node.all_input_nodes)
        return not zeros and is_operator(node) and torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]

    def _with_small(self, node: fx.Node) -> fx.Node:
        """The call of a node with its constant operands replaced by their small nodes."""

        def small(operand: fx.Node) -> fx.Node:
            return cast(fx.Node, self.small.get(operand, operand))

        args, kwargs = fx.map_arg((node.args, node.kwargs), small)
        return self.editor.call(
            cast(Any, node.target), cast(Any, args), cast(Any, kwargs), before=node
        )

    def _leaf(self, node: fx.Node, leaf: Leaf) -> _Small:
        """A gate multiplies a constant as it would the full value; an observer is skipped."""
        value = self.small[node.all_input_nodes[0]]
        if isinstance(value, _Zero) or not isinstance(leaf, Gate):
            return value
        if bool((leaf.settled() == 0).all()):
            return _Zero()
        args = (value, *node.args[1:])
        return self.editor.call_leaf(str(node.target), args, before=node, like=node)

    def _of(self, argument: Any) -> _Small | None:
        return self.small.get(argument) if isinstance(argument, fx.Node) else None

    def _is_zero(self, node: fx.Node, name: str, first: _Small | None) -> bool:
        if name in ("cat", "stack"):
            return all(isinstance(self._of(p), _Zero) for p in cast(Any, node.args[0]))
        if name == "scaled_dot_product_attention":
            return isinstance(self._of(node.args[2]), _Zero)
        if name == "div" and isinstance(self._of(node.args[1]), _Zero):
            return False
        if name in PRODUCTS:
            return any(isinstance(self._of(a), _Zero) for a in node.args[:2])
        if name in ("add", "sub"):
            return all(isinstance(self._of(a), _Zero) for a in node.args[:2])
        return name in KEEP_ZERO and isinstance(first, _Zero)

    def _weighted(self, node: fx.Node, first: _Small | None) -> _Small | None:
        if first is None or _is_unbatched(node):
            return None
        bias = get_argument(node, "bias")
        if isinstance(first, _Zero):
            return _Zero() if bias is None else self._spread(node, bias)
        if not _fits(first, node, -1 if operation(node) == "linear" else 1):
            return None
        if operation(node) == "linear":
            return self._call(node, (first, *node.args[1:]))
        if (
            not _is_uniform_map(first)
            or "transpose" in operation(node)
            or any(_numbers(get_argument(node, "padding")))
        ):
            return None
        weight = cast(fx.Node, node.args[1])
        dims = list(range(2, weight.meta["val"].dim()))
        whole = self.editor.call(aten.sum.dim_IntList, (weight, dims, True), before=node)
        groups = get_argument(node, "groups")
        ones = [1] * len(dims)
        args = (first, whole, bias, ones, [0] * len(dims), ones, groups)
        return self.editor.call(cast(Any, node.target), args, before=node)

    def _norm(self, node: fx.Node, first: _Small | None) -> _Small | None:
        mean, bias = get_argument(node, "running_mean"), get_argument(node, "bias")
        if first is not None and get_argument(node, "training") and self.batch_statistics:
            return _Zero() if bias is None else self._spread(node, bias)
        if first is None or get_argument(node, "training") or not isinstance(mean, fx.Node):
            return None
        if isinstance(first, _Zero):
            first = self.editor.call(
                aten.mul.Tensor, (self._spread(node, mean), 0.0), before=node, like=node
            )
        if not _fits(first, node, 1):
            return None
        return self._call(node, (first, *node.args[1:]))

    def _norm_of_last(self, node: fx.Node, first: _Small | None) -> _Small | None:
        """A normalization over the channels alone, where these are the last axis."""
        if first is None or len(get_argument(node, "normalized_shape")) != 1:
            return None
        if isinstance(first, fx.Node):
            full = node.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
            return (
                self._call(node, (first, *node.args[1:]))
                if first.meta["val"].shape[-1] == full
                else None
            )
        bias = bias_of(node)
        return _Zero() if bias is None else self._spread(node, bias)

    def _spread(self, node: fx.Node, vector: fx.Node) -> fx.Node:
        """A vector along the channel axis of a node: axis 1, or the last one of a linear layer or a layer norm."""
        rank = node.meta["val"].dim()
        axis = rank - 1 if operation(node) in ("linear", "layer_norm") else 1
        shape = [-1 if i == axis else 1 for i in range(rank)]
        return self.editor.call(aten.view.default, (vector, shape), before=node)

    def _call(self, node: fx.Node, args: tuple[Any, ...]) -> fx.Node:
        return self.editor.call(cast(Any, node.target), args, dict(node.kwargs), before=node)


def _stuck(node: fx.Node) -> str:
    if node.op == "output":
        return "the network returns a value that it makes constant"
    return f"node {node.name}: the result of {node.target} differs from position to position"


def _is_off(node: fx.Node, name: str) -> bool:
    """Whether a node is a dropout that hands on its input."""
    dropout = name in ("dropout", "feature_dropout")
    return dropout and (not get_argument(node, "train") or get_argument(node, "p") == 0)


def _is_unbatched(node: fx.Node) -> bool:
    """Whether a convolution reads a single map, whose channels lie along the first axis."""
    source, weight = (cast(fx.Node, n).meta["val"].dim() for n in node.args[:2])
    return operation(node) != "linear" and bool(source < weight)


def _fits(small: fx.Node, node: fx.Node, axis: int) -> bool:
    """Whether a small node has the full length along the channel axis that a node reads."""
    full = node.args[0].meta["val"].shape[axis]  # type: ignore[union-attr]
    return str(small.meta["val"].shape[axis]) == str(full)


def _is_uniform_map(small: fx.Node) -> bool:
    """Whether a small node varies along no axis behind the channels."""
    return all(n == 1 for n in small.meta["val"].shape[2:])


def _is_vector(node: fx.Node, user: fx.Node) -> bool:
    """Whether a stored tensor varies along one axis at most, so that the other axes stay uniform."""
    value, result = node.meta.get("val"), user.meta["val"]
    if node.op != "get_attr" or not isinstance(value, torch.Tensor) or value.dim() > result.dim():
        return False
    return sum(n != 1 for n in value.shape) <= 1


def _numbers(value: Any) -> Iterator[Any]:
    return iter(value) if isinstance(value, list | tuple) else iter((value,))


def _alike(a: fx.Node, b: fx.Node) -> bool:
    x, y = a.meta.get("val"), b.meta.get("val")
    return (
        isinstance(x, torch.Tensor)
        and isinstance(y, torch.Tensor)
        and x.dtype == y.dtype
        and [str(n) for n in x.shape] == [str(n) for n in y.shape]
    )
