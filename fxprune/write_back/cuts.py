"""The effect of a plan on each module of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fxprune.algebra.label import IntArray
from fxprune.plan import Plan, SetArgument
from fxprune.write_back.changes import prefixes
from fxprune.write_back.refuse import paths_of
from fxprune.write_back.sizes import Cut


def find_cuts(model: nn.Module, plan: Plan) -> list[Cut]:
    """Returns the effect of the plan on each module that it cuts or that contains such a module; shared ones once."""
    first = {id(m): p for p, m in model.named_modules()}
    kept: dict[str, dict[str, Mapping[int, IntArray]]] = {}
    for name, cut in plan.kept.items():
        path, _, leaf = name.rpartition(".")
        kept.setdefault(first[id(model.get_submodule(path))], {})[leaf] = cut
    spelled: dict[str, dict[tuple[str, int | None], Any]] = {}
    paths = paths_of(plan)
    for edit in plan.edits:
        if isinstance(edit, SetArgument) and edit.node in paths:
            spelled.setdefault(paths[edit.node], {})[edit.argument, edit.index] = edit.new
    around = {p for path in [*kept, *spelled] for p in prefixes(path)}
    return [
        Cut(m, p, kept.get(p, {}), _lengths(m), spelled.get(p, {}))
        for p, m in model.named_modules()
        if p in around
    ]


def _lengths(module: nn.Module) -> dict[str, int]:
    own = {**module._parameters, **module._buffers}
    return {name: len(t) for name, t in own.items() if t is not None and t.dim()}
