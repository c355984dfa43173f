"""Writes the casts that autocast makes into a graph, which torch.export records without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx

from fxprune.capture.failure import first_line
from fxprune.graph.program import describe
from fxprune.torch_private import (
    fake_result,
    higher_order,
    made_casts,
    overload,
    unlogged_failures,
)


class NoCastError(Exception):
    """The results of an operator under autocast cannot be had by casts of its arguments."""


def spell_casts(body: fx.GraphModule, device: str, dtype: torch.dtype | None) -> None:
    """Inserts in the graph of an autocast region the casts that autocast would make; it then runs without.

    Args:
        body: the graph of the region; regions without gradients inside it are included, and autocast regions, which
            have their own settings, are not.
        device: the type of device that autocast is for.
        dtype: the type that it casts to; None for the default of the device.

    Raises:
        NoCastError: an operator does something else under autocast than to cast its arguments.
    """
    low = torch.get_autocast_dtype(device) if dtype is None else dtype
    for node in list(body.graph.nodes):
        if higher_order(node) == "wrap_with_set_grad_enabled":
            spell_casts(getattr(body, node.args[1].target), device, dtype)
        elif (op := overload(node)) is not None:
            _spell(node, op, device, low)


def _spell(node: fx.Node, op: Any, device: str, low: torch.dtype) -> None:
    """Gives a call arguments of the types that autocast would cast them to."""
    wanted = _types(node.meta.get("val"))
    try:
        with unlogged_failures():
            casts = made_casts(op, node.args, node.kwargs, device, low)
            _cast(node, casts)
            if not casts and op._can_decompose() and _made(node) != wanted == [low]:
                # autocast casts inside it
                _cast(node, {n: low for n in node.all_input_nodes if _is_high(n, low)})
            made = _made(node)
    except (RuntimeError, TypeError) as error:
        raise NoCastError(f"{describe(node)}: {first_line(error)}") from error
    if made != wanted:
        raise NoCastError(f"{describe(node)}: casts of its arguments do not give {wanted}")


def _made(node: fx.Node) -> list[torch.dtype] | None:
    """Returns the types of what a call returns without autocast; None where its arguments do not go together."""
    try:
        return _types(fake_result(cast(Any, node.target), node.args, node.kwargs))
    except (RuntimeError, TypeError):
        return None


def _is_high(node: fx.Node, low: torch.dtype) -> bool:
    types = _types(node.meta.get("val"))
    return any(t.is_floating_point and t not in (low, torch.float64) for t in types)


def _cast(node: fx.Node, casts: Mapping[fx.Node, torch.dtype]) -> None:
    to = torch.ops.aten.to.dtype
    for source, dtype in casts.items():
        if node.target is not to:
            with node.graph.inserting_before(node):
                new = node.graph.call_function(to, (source, dtype))
            new.meta = {**node.meta, "val": fake_result(to, new.args, {})}
            node.replace_input_with(source, new)


def _types(value: Any) -> list[torch.dtype]:
    values = value if isinstance(value, list | tuple) else [value]
    return [x.dtype for x in values if isinstance(x, torch.Tensor)]
