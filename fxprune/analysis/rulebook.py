"""Looks up the rule of a torch operator."""

from __future__ import annotations

from functools import cache

import torch

from fxprune.rules.table import Rule, lookup


@cache
def find_rule(target: torch._ops.OpOverload) -> Rule | None:
    """Returns the rule of an operator: its own, that of its functional variant, or that of elementwise operators."""
    name = f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}"
    found = lookup(name, pointwise=torch.Tag.pointwise in target.tags)
    if found is None and target._schema.is_mutable:
        base, _, overload = name.rpartition(".")
        twin = getattr(torch.ops.aten, base.removeprefix("aten.").removesuffix("_"), None)
        tags = getattr(getattr(twin, overload, None), "tags", ())
        found = lookup(
            f"{base.removesuffix('_')}.{overload}", pointwise=torch.Tag.pointwise in tags
        )
    return found
