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
)
POINTWISE = "tag.pointwise"
PLUGINS = "fxprune.rules"  # entry points of other packages: modules that register rules

_table: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule under operator names: "aten.mean.dim" for one overload, "aten.mm" for all.

    A rule is called as `rule(u, *arguments)` with the operator's arguments in the order of its schema,
    defaults filled in, keyword-only ones by keyword where the rule takes them. A tensor argument is the
    tuple of its axes' labels. It returns the labels of the output, or a list of such for several outputs.
    """

    def register(function: Rule) -> Rule:
        _table.update(dict.fromkeys(names, function))
        return function

    return register


@cache
def load_rules() -> None:
    """Imports every family, once, then the rules of other packages, which come before ours.

    Raises:
        OptionError: another package's rules cannot be imported.
    """
    for family in FAMILIES:
        import_module(f"fxprune.rules.{family}")
    load_plugins(PLUGINS)


def lookup(name: str, *, pointwise: bool = False) -> Rule | None:
    """The rule of an operator by its full name, else by its name without overload, else by tag."""
    load_rules()
    found = (
        _table.get(name) or _table.get(name.rsplit(".", 1)[0])
        if name.count(".") > 1
        else _table.get(name)
    )
    return found or (_table[POINTWISE] if pointwise else None)


def rule_names() -> list[str]:
    """Every name with a rule, sorted."""
    load_rules()
    return sorted(_table)


def present(*operands: Any) -> list[Any]:
    """The operands that are tensors."""
    return [o for o in operands if isinstance(o, tuple)]
