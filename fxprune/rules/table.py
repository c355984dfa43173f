"""The table of rules, keyed by operator name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from fxprune.plugins import load_plugins

Rule = Callable[..., Any]
FAMILIES = (
    "pointwise",
    "contraction",
    "shape",
    "norm",
    "attention",
    "reduction",
    "indexing",
    "creation",
    "window",
    "recurrent",
    "quantise",
    "detection",
)
POINTWISE = "tag.pointwise"
PLUGINS = "fxprune.rules"  # entry points of other packages: modules that register rules

_table: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule under operator names: `"aten.mean.dim"` for one overload, `"aten.mm"` for all.

    A rule is called as `rule(u, *arguments)`, where `u` is the `Units` of the analysis. Arguments come
    in the order of the operator's schema with defaults filled in; keyword-only arguments are passed by
    keyword if the rule accepts them. A tensor argument is the tuple of the labels of its axes. The rule
    returns the labels of the output, or a list of such tuples for several outputs. See `docs/rules.md`.
    """

    def register(function: Rule) -> Rule:
        _table.update(dict.fromkeys(names, function))
        return function

    return register


@cache
def load_rules() -> None:
    """Imports all families of rules once, then the rules of other packages, which take precedence.

    Raises:
        OptionError: the rules of another package cannot be imported.
    """
    for family in FAMILIES:
        import_module(f"fxprune.rules.{family}")
    load_plugins(PLUGINS)


def lookup(name: str, *, pointwise: bool = False) -> Rule | None:
    """Finds the rule of an operator by its full name, else by its name without overload, else by tag."""
    load_rules()
    found = (
        _table.get(name) or _table.get(name.rsplit(".", 1)[0])
        if name.count(".") > 1
        else _table.get(name)
    )
    return found or (_table[POINTWISE] if pointwise else None)


def rule_names() -> list[str]:
    """Returns every operator name that has a rule, sorted."""
    load_rules()
    return sorted(_table)


def present(*operands: Any) -> list[Any]:
    """Returns the operands that are tensors."""
    return [o for o in operands if isinstance(o, tuple)]
