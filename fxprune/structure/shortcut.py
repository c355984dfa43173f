"""Traces an operand of a residual addition back through casts, reshapes and at most one projection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import fx

from fxprune.graph.operands import get_argument
from fxprune.structure.paths import Flow, operator

# Hands on the elements as they are, perhaps in another type, order or shape; as gates and observers do.
_SAME = frozenset(
    (
        *("to", "_to_copy", "type_as", "float", "half", "bfloat16", "double", "contiguous"),
        *("clone", "detach", "alias", "lift_fresh", "dropout", "native_dropout"),
        *("feature_dropout", "alpha_dropout", "feature_alpha_dropout", "view", "_unsafe_view"),
        *("reshape", "view_as", "reshape_as", "unflatten", "flatten", "squeeze", "unsqueeze"),
        *("ravel", "permute", "transpose", "t", "movedim", "swapaxes", "pixel_shuffle"),
        *("pixel_unshuffle", "mT", "numpy_T"),
    )
)
# Linear and without weights: changes the resolution or the width of an identity shortcut.
_RESAMPLED = frozenset(
    [f"avg_pool{d}d" for d in (1, 2, 3)]
    + [f"adaptive_avg_pool{d}d" for d in (1, 2, 3)]
    + [f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d")]
    + ["upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "constant_pad_nd"]
)
_CUT = frozenset(("slice", "narrow"))
_NORM = frozenset(
    (
        *("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"),
        *("native_batch_norm", "native_group_norm", "native_layer_norm"),
        *("_native_batch_norm_legit", "cudnn_batch_norm"),
    )
)
_AFFINE = frozenset(("add", "sub", "mul", "div"))
# The operator of a projection by the places of its operands: the value's and the weight's.
_PROJECTION = {
    **{f"conv{t}{d}d": (0, 1) for t in ("", "_transpose") for d in (1, 2, 3)},
    **dict.fromkeys(("convolution", "linear", "mm", "matmul", "bmm"), (0, 1)),
    "addmm": (1, 2),
}


@dataclass(frozen=True)
class View:
    """A value of which an operand is a view.

    Attributes:
        value: the value.
        path: the nodes between the value and the addition, in execution order; empty if it is the operand itself.
        projected: whether the path contains a projection.
        scaled: whether the path contains a norm, scale or shift that belongs to a projection further back.
        cut: whether the operand is a view of only a part of the value.
    """

    value: fx.Node
    path: tuple[fx.Node, ...] = ()
    projected: bool = False
    scaled: bool = False
    cut: bool = False


def views(operand: fx.Node, flow: Flow) -> Iterator[View]:
    """Yields the values of which an operand of an addition is a view, nearest first, beginning with the operand."""
    view: View | None = View(operand)
    while view is not None:
        if not view.scaled:
            yield view
        view = _before(view, flow)


def _before(view: View, flow: Flow) -> View | None:
    """Returns the view one node further back; None if the node is more than a projection."""
    node = view.value
    if node in flow.written:
        return None
    name = operator(node)
    if node.op == "call_module" or name in _SAME or name in _RESAMPLED or _is_padding(node, flow):
        return _through(view, flow)
    if name in _CUT:
        return _through(replace(view, cut=True), flow)
    if view.projected:
        return None
    if name in _PROJECTION:
        place, weight = _PROJECTION[name]
        if node.args[weight] not in flow.trained:
            return None
        return _through(replace(view, projected=True, scaled=False), flow, place)
    return _through(replace(view, scaled=True), flow) if _is_scaling(node, flow) else None


def _through(view: View, flow: Flow, place: int = 0) -> View | None:
    """Returns the view of the argument at `place` of a view's value, or of the only argument that varies."""
    node = view.value
    source = node.args[place] if node.args else None
    if operator(node) in _AFFINE or isinstance(source, list | tuple):
        source = next((n for n in flow.inputs[node] if n in flow.varying), None)
    if not isinstance(source, fx.Node):
        return None
    return replace(view, value=source, path=(node, *view.path))


def _is_padding(node: fx.Node, flow: Flow) -> bool:
    """Returns whether a node appends constants to a value."""
    if operator(node) == "pad":
        return bool(get_argument(node, "mode") == "constant")
    if operator(node) != "cat":
        return False
    others = [n for n in flow.inputs[node] if n not in flow.varying]
    return len(flow.inputs[node]) - len(others) == 1 and flow.trained.isdisjoint(others)


def _is_scaling(node: fx.Node, flow: Flow) -> bool:
    """Returns whether a node is a norm, or scales or shifts a value by constants or parameters."""
    if operator(node) in _NORM:
        return True
    return operator(node) in _AFFINE and sum(n in flow.varying for n in flow.inputs[node]) == 1
