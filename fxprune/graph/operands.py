"""Reads and writes the arguments of an ATen call by their names in the operator's schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx


def is_operator(node: fx.Node) -> bool:
    """Returns whether a node calls an overload of a torch operator."""
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def bind(node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
    """Returns positional and keyword-only arguments in the order of the schema, with defaults filled in."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        default = argument.default_value if argument.has_default_value() else None
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, default)
        if argument.kwarg_only:
            keywords[argument.name] = value
        else:
            positional.append(value)
    return positional, keywords


def get_argument(node: fx.Node, name: str) -> Any:
    """Returns the value of an argument, or its default."""
    return argument_of(node.target, node.args, node.kwargs, name)


def argument_of(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """Returns the value of an argument of an operator's call, or its default."""
    for i, argument in enumerate(op._schema.arguments):
        if argument.name == name:
            default = argument.default_value if argument.has_default_value() else None
            return args[i] if i < len(args) else kwargs.get(name, default)
    raise KeyError(name)


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Sets an argument where the call already passes it, otherwise as a keyword argument."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index(name)
    if place < len(node.args):
        node.update_arg(place, value)
    else:
        node.update_kwarg(name, value)
