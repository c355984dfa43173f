"""What a call does besides returning a value: whether it draws random numbers, and which arguments it writes to."""

from __future__ import annotations

import torch
from torch import fx

from fxprune.graph.editor import gathers_statistics
from fxprune.graph.operands import get_argument
from fxprune.torch_private import mutated, overload


def is_random(node: fx.Node) -> bool:
    """Whether the operator of a node draws random numbers in at least one of its modes."""
    op = overload(node)
    return op is not None and torch.Tag.nondeterministic_seeded in op.tags


def draws_now(node: fx.Node) -> bool:
    """Whether a node draws random numbers with the arguments it has; dropout that is off does not."""
    if not is_random(node):
        return False
    names = {a.name for a in node.target._schema.arguments}  # type: ignore[union-attr]
    flag = next((n for n in ("train", "training", "dropout_p") if n in names), None)
    return flag is None or bool(get_argument(node, flag))


def written(node: fx.Node) -> tuple[fx.Node, ...]:
    """The arguments that a node writes to; in train mode those of a batch norm include its running statistics."""
    op = overload(node)
    if op is None:
        return ()
    names = [op._schema.arguments[i].name for i in mutated(op)]
    if gathers_statistics(node):
        names += ["running_mean", "running_var"]
    found = (get_argument(node, n) for n in names)
    return tuple(x for x in found if isinstance(x, fx.Node))
