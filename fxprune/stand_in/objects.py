"""Attributes of objects, read and written past whatever their classes say."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

MISSING: Any = object()
_FOREIGN = sys.stdlib_module_names | {"torch", "functorch", "numpy", "sympy", "triton", "fxprune"}


def is_foreign(x: Any) -> bool:
    """Whether a class, function or module is torch's, ours or of the standard library: no user's state."""
    name = x.__name__ if isinstance(x, types.ModuleType) else x.__module__
    return isinstance(name, str) and name.partition(".")[0] in _FOREIGN


def attributes_of(x: Any) -> dict[str, Any]:
    """The dictionary of its attributes itself; an empty one where it has none."""
    try:
        found: dict[str, Any] = object.__getattribute__(x, "__dict__")
    except AttributeError:
        return {}
    return found


def slots_of(kind: type) -> tuple[Any, ...]:
    """Descriptors of the attributes that objects of a class keep outside `__dict__`."""
    slotted = [vars(base) for base in kind.__mro__ if "__slots__" in vars(base)]
    found = [d for names in slotted for d in names.values()]
    return tuple(d for d in found if isinstance(d, types.MemberDescriptorType))


def get_slot(slot: Any, x: Any) -> Any:
    """What a slot holds, `MISSING` where it is empty."""
    try:
        return slot.__get__(x)
    except AttributeError:
        return MISSING


def put_items(mapping: Any, wanted: Mapping[Any, Any]) -> None:
    """Lets a dict hold these entries in this order, whatever its class forbids; what is right stays untouched."""
    if _holds(mapping, wanted):
        return
    kind = OrderedDict if isinstance(mapping, OrderedDict) else dict
    for key in [k for k in dict.keys(mapping) if k not in wanted]:
        kind.__delitem__(mapping, key)
    for key, value in wanted.items():
        if dict.get(mapping, key, MISSING) is not value:
            kind.__setitem__(mapping, key, value)
    if not _holds(mapping, wanted):
        for key, value in wanted.items():
            kind.__delitem__(mapping, key)
            kind.__setitem__(mapping, key, value)


def _holds(mapping: Any, wanted: Mapping[Any, Any]) -> bool:
    return len(mapping) == len(wanted) and all(
        a is c and b is d
        for (a, b), (c, d) in zip(dict.items(mapping), wanted.items(), strict=True)
    )
