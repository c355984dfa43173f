"""The operators that map zeros to zeros: how far a closed gate reaches."""

from __future__ import annotations

from torch import fx

from fxprune.graph.operands import get_argument
from fxprune.structure.paths import operator

# 0 in their first operand gives 0, whatever the others are.
KEEP_ZERO = frozenset(
    (
        "_unsafe_view abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d alias asinh "
        "avg_pool1d avg_pool2d avg_pool3d chunk clone contiguous detach div dropout elu expand "
        "feature_dropout flatten gelu getitem hardswish hardtanh leaky_relu max_pool1d max_pool2d "
        "max_pool3d mean mish narrow neg permute prelu relu relu6 reshape roll select selu silu slice "
        "softsign split split_with_sizes sqrt square squeeze sum tanh to transpose unbind unflatten "
        "unsqueeze upsample_bilinear2d upsample_nearest2d view"
    ).split(" ")
)
# 0 in either operand gives 0.
PRODUCTS = frozenset(("mul", "matmul", "bmm", "mm"))
# Sums of products, one factor of each operand: a position adds nothing where it is 0 in one of the two.
CONTRACTIONS = frozenset(
    (
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution "
        "_convolution mm bmm matmul mv dot vdot inner addmm addmv baddbmm _grouped_mm "
        "scaled_dot_product_attention"
    ).split(" ")
)
# They multiply their first operand by weights; all else that they sum over is their own earlier result.
RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))


def operation(node: fx.Node) -> str:
    """Returns the name of an ATen operator, or that of another function."""
    return operator(node) or getattr(node.target, "__name__", "")


def leaves_bias(node: fx.Node) -> bool:
    """Returns whether a node whose first operand is 0 returns its bias, or 0 without one, whatever its weight is."""
    name = operator(node)
    if is_norm(node):
        return len(get_argument(node, "normalized_shape")) == 1
    return name == "linear" or name.startswith("conv")


def is_norm(node: fx.Node) -> bool:
    """Returns whether a node is a norm over the last axes."""
    return operator(node) in ("layer_norm", "rms_norm")


def bias_of(node: fx.Node) -> fx.Node | None:
    """Returns the bias of a node for which `leaves_bias` is true."""
    found = None if operation(node) == "rms_norm" else get_argument(node, "bias")
    return found if isinstance(found, fx.Node) else None
