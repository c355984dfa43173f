"""Decides which calls are affine in the values that depend on the network's inputs, and why others are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.graph.operands import bind, get_argument, is_operator
from fxprune.structure.paths import Flow, draws, operator, reads_sizes

# Linear in the first argument; the others say where and how.
_FIRST = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "ravel", "squeeze"),
        *("unsqueeze", "permute", "transpose", "t", "movedim", "swapaxes", "expand", "repeat"),
        *("repeat_interleave", "tile", "select", "slice", "narrow", "index_select", "index"),
        *("gather", "take", "unfold", "im2col", "col2im", "split", "split_with_sizes", "chunk"),
        *("unbind", "diagonal", "tril", "triu", "flip", "roll", "rot90", "as_strided"),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "constant_pad_nd", "pad"),
        *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d"),
        *("replication_pad2d", "replication_pad3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"),
        *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "mean", "sum"),
        *("cumsum", "neg", "to", "_to_copy", "type_as", "float", "half", "bfloat16", "double"),
        *("contiguous", "clone", "detach", "alias", "positive", "view_as", "reshape_as"),
        *("expand_as", "mT", "numpy_T"),
    )
)
_SUMS = frozenset(("add", "sub", "rsub", "cat", "concat", "stack"))
# Linear in each factor, so affine where one of them varies; other operands are added. By their places.
_FACTORS: dict[str, tuple[int, ...]] = {
    **{f"conv{t}{d}d": (0, 1) for t in ("", "_transpose") for d in (1, 2, 3)},
    **dict.fromkeys(("convolution", "linear", "mm", "bmm", "matmul", "mv", "dot", "inner"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm"), (1, 2)),
}
_MASKED = {"masked_fill": 1, "where": 0}
_DROPOUT = frozenset(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"))

PRODUCT = "it multiplies two values that depend on the input"
RANDOM = "one factor is drawn at random"


@dataclass(frozen=True)
class _Call:
    """A node with what is known about its arguments."""

    node: fx.Node
    name: str
    args: list[Any]
    keywords: dict[str, Any]
    varying: frozenset[fx.Node]
    random: frozenset[fx.Node]

    def varies(self, value: Any) -> bool:
        """Returns whether an argument holds a value that depends on the input."""
        return any(x in self.varying for x in _leaves(value))

    @property
    def steered(self) -> str:
        """The reason why the call is not affine, if more than its first argument varies."""
        rest = [*self.args[1:], self.keywords]
        if self.varies(rest):
            return f"{self.node.target} takes its positions from values that depend on the input"
        return ""

    def product(self, factors: list[Any]) -> str:
        """Returns why the call is not affine, unless the factors are one varying value and constants."""
        if sum(self.varies(f) for f in factors) > 1:
            return PRODUCT
        return RANDOM if any(x in self.random for x in _leaves(factors)) else ""


def _leaves(value: Any) -> list[Any]:
    return pytree.tree_leaves(value)


def why_not_affine(flow: Flow) -> dict[fx.Node, str]:
    """Returns for every live node whose value varies why it is not affine; "" if it is affine."""
    random = _random(flow)
    why = {n: _reason(n, flow.varying, random) for n in flow.order if n in flow.varying}
    for node, writes in flow.written.items():
        if why.get(node) == "":
            why[node] = f"it reads memory that {writes[-1].name} writes to"
    return why


def is_weighted(node: fx.Node, flow: Flow) -> bool:
    """Returns whether a node is a convolution or matrix product with a parameter."""
    return any(x in flow.trained for x in _leaves(_factors(node)))


def _factors(node: fx.Node) -> list[Any]:
    name = operator(node)
    if name == "einsum":
        return list(node.args[1]) if isinstance(node.args[1], list | tuple) else []
    places = _FACTORS.get(name, ())
    return [bind(node)[0][i] for i in places]


def _random(flow: Flow) -> frozenset[fx.Node]:
    """Returns the random values, and the values computed from them without the network's input."""
    found: set[fx.Node] = set()
    for node in flow.order:
        drawn = draws(node) or not found.isdisjoint(flow.inputs[node])
        if drawn and node not in flow.varying:
            found.add(node)
    return frozenset(found)


def _reason(node: fx.Node, varying: frozenset[fx.Node], random: frozenset[fx.Node]) -> str:
    if node.op in _ENDS:
        return _ENDS[node.op]
    if node.op == "call_module" or (node.target is getitem and _has_fractions(node)):
        return ""  # a gate or an observer
    if not is_operator(node) or reads_sizes(node):
        return f"{_target(node)} is not affine"
    call = _Call(node, operator(node), *bind(node), varying, random)
    return next(_checks(call), f"{node.target} is not affine")


_ENDS = {"placeholder": "an input of the network", "output": "the network's output"}


def _target(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _checks(call: _Call) -> Iterator[str]:
    """Yields the verdict for each kind of operator that the call belongs to."""
    if not _has_fractions(call.node):
        yield f"{call.node.target} does not return floating-point numbers"
    if call.name in _FIRST:
        yield call.steered
    if call.name in _SUMS:
        yield ""
    if call.name in _FACTORS or call.name == "einsum":
        yield call.product(_factors(call.node))
    if call.name in _KINDS:
        yield _KINDS[call.name](call)


def _has_fractions(node: fx.Node) -> bool:
    """Returns whether the value, or every tensor of a list, has a floating-point or complex type."""
    tensors = [x for x in _leaves(node.meta.get("val")) if isinstance(x, torch.Tensor)]
    return bool(tensors) and all(x.is_floating_point() or x.is_complex() for x in tensors)


def _multiplication(call: _Call) -> str:
    return call.product(call.args[:2])


def _division(call: _Call) -> str:
    if call.varies(call.args[1]):
        return "it divides by a value that depends on the input"
    if call.keywords.get("rounding_mode") is not None:
        return "the quotient is rounded"
    return call.product(call.args[:2])


def _masking(call: _Call) -> str:
    if call.varies(call.args[_MASKED[call.name]]):
        return f"the mask of {call.node.target} depends on the input"
    return ""


def _batch_norm(call: _Call) -> str:
    own = call.args[3] is None or get_argument(call.node, "training")
    return "batch_norm in train mode uses the batch's statistics" if own else call.steered


def _instance_norm(call: _Call) -> str:
    own = get_argument(call.node, "use_input_stats")
    return "instance_norm uses the statistics of its input" if own else call.steered


def _dropout(call: _Call) -> str:
    off = not get_argument(call.node, "train") or get_argument(call.node, "p") == 0
    return "" if off else "dropout in train mode is random"


_KINDS: dict[str, Callable[[_Call], str]] = {
    "mul": _multiplication,
    "div": _division,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    **dict.fromkeys(_DROPOUT, _dropout),
    **dict.fromkeys(_MASKED, _masking),
}
