"""Whether the arguments of a call, read from a file, are those that the schema of its operator asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

_ENUMS = (torch.dtype, torch.layout, torch.memory_format)  # integers to a schema
_NUMBERS = (bool, int, float, complex, fx.Node, *_ENUMS)
_KINDS: dict[str, tuple[type, ...]] = {
    "TensorType": (fx.Node, bool, int, float, complex),  # a number is wrapped
    "StringType": (str,),
    "DeviceObjType": (torch.device, fx.Node),
    **dict.fromkeys(("IntType", "SymIntType", "FloatType", "BoolType", "NumberType"), _NUMBERS),
    **dict.fromkeys(("ComplexType", "SymBoolType", "SymFloatType"), _NUMBERS),
}


def misfit(
    operator: torch._ops.OpOverload[Any, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """What of the arguments of a call does not fit the schema of its operator; "" where everything does."""
    arguments = operator._schema.arguments
    positional = [a for a in arguments if not a.kwarg_only]
    if len(args) > len(positional):
        return f"{len(args)} positional arguments, and the operator takes {len(positional)}"
    given = {a.name: x for a, x in zip(positional, args, strict=False)}
    if twice := given.keys() & kwargs.keys():
        return f"the argument {min(twice)} twice"
    if unknown := kwargs.keys() - {a.name for a in arguments}:
        return f"an argument {min(unknown)[:80]!r}, which the operator has not"
    given |= kwargs
    for a in arguments:
        if a.name not in given and not a.has_default_value():
            return f"no argument {a.name}"
        if a.name in given and not _fits(given[a.name], a.type):
            return f"as the argument {a.name}, a {a.type}, {str(given[a.name])[:80]!r}"
    return ""


def _fits(value: Any, kind: Any) -> bool:
    name = kind.kind()
    if name == "OptionalType":
        return value is None or _fits(value, kind.getElementType())
    if name == "ListType":
        if isinstance(value, list | tuple):
            return all(_fits(x, kind.getElementType()) for x in value)
        return isinstance(value, fx.Node) or _fits(value, kind.getElementType())
    return name not in _KINDS or isinstance(value, _KINDS[name])
