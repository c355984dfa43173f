"""Switches a captured graph between train and eval mode.

Capture marks each node whose behaviour depends on the mode with `meta["fxprune_mode"]`, the pair
(argument in train mode, argument in eval mode). `set_training` writes one of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx

from fxprune.graph.operands import argument_of, bind, get_argument, set_argument

MODE = "fxprune_mode"

_DROPOUT = tuple(
    f"{family}{suffix}"
    for family in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
    for suffix in ("", "_")
)
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_FLAG = {
    "batch_norm": "training",
    "instance_norm": "use_input_stats",
    "native_dropout": "train",
    "rrelu": "training",
    "rrelu_": "training",
    "scaled_dot_product_attention": "dropout_p",
    **dict.fromkeys(_DROPOUT + _RECURRENT, "train"),
}
_STATISTICS = {"batch_norm", "instance_norm"}


def mode_argument(node: fx.Node) -> str:
    """Returns the name of the argument that depends on the mode (`"train"`, `"dropout_p"`, ...), or ""."""
    if node.op != "call_function":
        return ""
    return mode_argument_of(node.target, node.args, node.kwargs)


def mode_argument_of(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Returns the name of the argument of a call that depends on the mode, or ""."""
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten":
        return ""
    name = op._opname
    if name in _STATISTICS and argument_of(op, args, kwargs, "running_mean") is None:
        return ""
    return _FLAG.get(name, "")


def is_counter(node: fx.Node) -> bool:
    """Returns whether a node reads or increments a batch norm's counter, which happens in train mode only."""
    source = node.args[0] if node.target is torch.ops.aten.add_.Tensor else node
    return (
        isinstance(source, fx.Node)
        and source.op == "get_attr"
        and str(source.target).endswith("num_batches_tracked")
    )


def without_mode(node: fx.Node) -> tuple[Any, Any]:
    """Returns the positional and keyword arguments of a node without the one that depends on the mode."""
    if MODE not in node.meta:
        return node.args, dict(node.kwargs)
    positional, keywords = bind(node)
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    every = dict(zip(names, positional, strict=False)) | keywords
    every.pop(mode_argument(node), None)
    return (), every


def set_training(module: fx.GraphModule, mode: bool) -> bool:
    """Switches batch norm, dropout and similar operators to train or eval mode.

    Args:
        module: a captured graph; only the nodes that capture marked are switched.
        mode: true for train mode, false for eval mode.

    Returns:
        Whether the graph changed; the caller must recompile it in that case.
    """
    changed = False
    for node in list(module.graph.nodes):
        if MODE not in node.meta:
            continue
        wanted = node.meta[MODE][0 if mode else 1]
        if get_argument(node, mode_argument(node)) != wanted:
            set_argument(node, mode_argument(node), wanted)
            _switch_counter(module, node, mode)
            changed = True
    return changed


def _switch_counter(module: fx.GraphModule, node: fx.Node, mode: bool) -> None:
    """Adds or removes `num_batches_tracked += 1` of a batch norm."""
    counter = _counter_name(module, node)
    if counter and mode:
        _insert_counter(module, node, counter)
    elif counter:
        _erase_counter(module.graph, counter)


def _counter_name(module: fx.GraphModule, node: fx.Node) -> str:
    if getattr(node.target, "_opname", "") != "batch_norm":
        return ""
    mean = get_argument(node, "running_mean")
    if not isinstance(mean, fx.Node) or mean.op != "get_attr":
        return ""
    path, _, _ = str(mean.target).rpartition(".")
    owner = module.get_submodule(path)
    found = owner._buffers.get("num_batches_tracked")
    return f"{path}.num_batches_tracked".lstrip(".") if found is not None else ""


def _insert_counter(module: fx.GraphModule, node: fx.Node, counter: str) -> None:
    buffer = _counter_node(module, get_argument(node, "running_mean"), counter)
    with module.graph.inserting_before(node):
        added = module.graph.call_function(torch.ops.aten.add_.Tensor, (buffer, 1))
    added.meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}
    if "val" in buffer.meta:
        added.meta["val"] = buffer.meta["val"]


def _counter_node(module: fx.GraphModule, mean: fx.Node, counter: str) -> fx.Node:
    """Returns the get_attr node of the counter; it is created next to that of the running mean."""
    known = (n for n in module.graph.find_nodes(op="get_attr") if n.target == counter)
    if (found := next(known, None)) is not None:
        return cast(fx.Node, found)
    with module.graph.inserting_after(mean):
        buffer = module.graph.get_attr(counter)
    if (val := mean.meta.get("val")) is not None:
        buffer.meta["val"] = val.fake_mode.from_tensor(module.get_buffer(counter))
    return buffer


def _erase_counter(graph: fx.Graph, counter: str) -> None:
    """Erases every `counter += 1`; the second call of a shared module adds to the result of the first."""
    for buffer in graph.find_nodes(op="get_attr"):
        if buffer.target != counter:
            continue
        while added := [u for u in buffer.users if u.target is torch.ops.aten.add_.Tensor]:
            added[0].replace_all_uses_with(buffer)
            graph.erase_node(added[0])
        if not buffer.users:
            graph.erase_node(buffer)
