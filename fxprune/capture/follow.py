"""Makes constants follow the network to another dtype or device.

A captured graph spells the dtype and device of every tensor that it creates, also where the model's code took
them from an input or a parameter. Running that code once more, without data and with another dtype and device,
shows which is which: those that changed are taken from a tensor of the graph instead. So are numbers that are a limit
of the dtype, `torch.finfo(x.dtype).min`, `max` or `eps`. Other numbers that changed get a remark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from fxprune.capture.fixed_numbers import (
    Constant,
    asks_for_dtype,
    computes_otherwise,
    converts_exactly,
    number_fixed,
    table_fixed,
)
from fxprune.capture.limits import LIMITS, add_call, follow_limits
from fxprune.capture.spelled import Runs, Spelled, may_follow, names_type, spelled_call
from fxprune.graph.mode import is_counter
from fxprune.graph.operands import get_argument, set_argument
from fxprune.remark import Remark

_LIKE = {
    torch.ops.aten.zeros.default: torch.ops.aten.new_zeros.default,
    torch.ops.aten.ones.default: torch.ops.aten.new_ones.default,
    torch.ops.aten.full.default: torch.ops.aten.new_full.default,
    torch.ops.aten.empty.memory_format: torch.ops.aten.new_empty.default,
}
_MAY_COPY = (torch.ops.aten.to.dtype, torch.ops.aten.to.dtype_layout, torch.ops.aten.to.device)
_CASTS = (*_MAY_COPY, torch.ops.aten._to_copy.default)


class Following(NamedTuple):
    """A call, the names of its literals that follow the network, and of its numbers that change with it otherwise."""

    call: Spelled
    names: frozenset[str]
    numbers: frozenset[str] = frozenset()


def find_following(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], graph: fx.GraphModule
) -> tuple[list[Following], list[Remark]]:
    """Returns the calls of a network that spell a dtype, a device or a number, in order, with what follows it.

    Args:
        model: the network.
        args: the example positional inputs.
        kwargs: the example keyword inputs.
        graph: its graph; the network does not run where the graph spells no type, limit or constant and the code of
            the model does not ask for a dtype.

    Returns:
        The calls, and a remark on each dtype in which the network calls other operators.
    """
    calls = [call for node in _nodes(graph) if (call := spelled_call(node)) is not None]
    asked = asks_for_dtype(model)
    if not any(map(may_follow, calls)) and asked is None:
        return [], []
    runs = Runs(model, args, kwargs, calls, whole=bool(asked))
    following, others = _following(runs)
    for dtype in asked or ():
        if dtype not in (*others, *runs.used) and not runs.alike(dtype):
            others.append(dtype)
    return following, [computes_otherwise(model, dtype) for dtype in others]


def _following(runs: Runs) -> tuple[list[Following], list[torch.dtype]]:
    """What follows the network, and the dtype in which it calls other operators, if it does."""
    others: list[torch.dtype] = []
    dtype, device = runs.dtype, runs.device
    for change in ((dtype, device), (dtype, None), (None, device)):
        if pairs := runs.pairs(*change):
            alone = runs.pairs(dtype, None) if _hides_constants(pairs) else None
            return _compared(pairs, alone or pairs, *change), others
        if change == (dtype, None) and pairs is None:
            others.append(dtype)
    return [], others


def _hides_constants(pairs: list[tuple[Spelled, Spelled]]) -> bool:
    """Whether a constant has no value in the other run, as on the meta device."""
    return any(
        isinstance(x, Constant) and b.literals.get(name) is None
        for a, b in pairs
        for name, x in a.literals.items()
    )


def _compared(
    pairs: list[tuple[Spelled, Spelled]],
    alone: list[tuple[Spelled, Spelled]],
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> list[Following]:
    """What follows the network to another dtype and device; numbers change as where the dtype is changed alone."""
    numbers = [_changed(a, b, dtype, None)[1] for a, b in alone]
    return [
        Following(a, _changed(a, b, dtype, device)[0], others)
        for (a, b), others in zip(pairs, numbers, strict=True)
    ]


def _changed(
    before: Spelled, after: Spelled, dtype: Any, device: Any
) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the names of the literals that follow, and of the numbers that change otherwise."""
    new = {"dtype": dtype, "device": device}
    follow, others = set[str](), set[str]()
    for name, x in before.literals.items():
        y = after.literals.get(name)
        if isinstance(x, Constant):
            if dtype is not None and isinstance(y, Constant) and not x.converts_to(y):
                others.add(name)
        elif isinstance(x, float):
            kind = LIMITS[x].kind if x in LIMITS else ""
            if kind and y in LIMITS and LIMITS[y] == (kind, dtype):
                follow.add(name)
            elif y != x and not (isnan(x) and isinstance(y, float) and isnan(y)):
                others.add(name)
        elif x != y and y == new.get(name):
            follow.add(name)
    return frozenset(follow), frozenset(others)


def _nodes(graph: fx.GraphModule) -> Iterator[fx.Node]:
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def follow_sources(graph: fx.Graph, following: Sequence[Following]) -> list[Remark]:
    """Takes what follows the network from a tensor of the graph, where there is one.

    Returns:
        A remark on each number that changes with the network's dtype, and stays as it is.
    """
    found = [(node, call) for node in graph.nodes if (call := spelled_call(node)) is not None]
    known = _known([call for _, call in found], following)
    pairs = list(zip((node for node, _ in found), known, strict=True))
    tables = [
        table_fixed(n)
        for n, one in pairs
        if "dtype" in one.names and n.target not in _LIKE and not converts_exactly(n)
    ]
    left = _take(graph, {node: one.names for node, one in pairs})
    left += [(node, name) for node, one in pairs for name in one.numbers]
    return tables + [number_fixed(node, name) for node, name in left]


def follow_operands(graph: fx.Graph, call: fx.Node) -> None:
    """Takes from the operands what the decomposition of a call spells, unless the call itself spells it."""
    given = spelled_call(call)
    operands = [n.meta["val"] for n in graph.find_nodes(op="placeholder")]
    known: set[Any] = {x.device for x in operands if isinstance(x, torch.Tensor)}
    known |= {x.dtype for x in operands if isinstance(x, torch.Tensor) and x.is_floating_point()}
    known -= set(given.literals.values()) if given else set()
    found = [(node, inner) for node in graph.nodes if (inner := spelled_call(node)) is not None]
    _take(graph, {n: frozenset(k for k, x in c.literals.items() if x in known) for n, c in found})


def _take(graph: fx.Graph, changes: Mapping[fx.Node, frozenset[str]]) -> list[tuple[fx.Node, str]]:
    """Takes the named literals of calls from sources; returns the numbers for which this is not possible."""
    if not any(changes.values()):
        return []
    sources, left = _Sources(), list[tuple[fx.Node, str]]()
    for node in list(graph.nodes):
        names = changes.get(node, frozenset())
        if numbers := {k for k in names if isinstance(get_argument(node, k), float)}:
            left += [(node, k) for k in follow_limits(node, numbers, sources.find)]
        if types := names - numbers - _leave_out(node, names, sources):
            _rewrite(node, types, sources)
        sources.add(node, follows="dtype" in names)
    return left


def _leave_out(node: fx.Node, names: frozenset[str], sources: _Sources) -> set[str]:
    """Leaves out a dtype that an operator takes from its operand, where the operand has it and follows the network."""
    operand: Any = node.args[0] if node.args else None
    if "dtype" not in names or not isinstance(operand, fx.Node) or not sources.has(operand):
        return set()
    value, dtype = operand.meta["val"], get_argument(node, "dtype")
    (argument,) = (a for a in node.target._schema.arguments if a.name == "dtype")  # type: ignore[union-attr]
    optional = argument.has_default_value() and argument.default_value is None
    if not optional or value.dtype != dtype or not dtype.is_floating_point:
        return set()
    set_argument(node, "dtype", None)
    return {"dtype"}


def _known(calls: list[Spelled], following: Sequence[Following]) -> list[Following]:
    """Returns what follows in each call; where calls are missing, equal ones must agree on it."""
    if calls == [f.call for f in following]:
        return list(following)
    agreed: list[Following] = []
    for call in calls:
        alike = {f[1:] for f in following if f.call == call}
        agreed.append(Following(call, *(alike.pop() if len(alike) == 1 else (frozenset(),))))
    return agreed


class _Sources:
    """The nodes so far whose dtype and device are those of the network."""

    def __init__(self) -> None:
        self._nodes: dict[str, list[fx.Node]] = {
            "placeholder": [],
            "call_function": [],
            "get_attr": [],
        }
        self._known = set[fx.Node]()

    def add(self, node: fx.Node, *, follows: bool) -> None:
        """Adds a node whose value is a tensor of the network's dtype, but for the counter of a batch norm."""
        value = node.meta.get("val")
        if node.op not in self._nodes or not isinstance(value, torch.Tensor) or is_counter(node):
            return
        operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        call = spelled_call(node)
        spells = call is not None and any(map(names_type, call.literals.values()))
        computed = bool(operands) and not spells and self._known.issuperset(operands)
        if follows or node.op != "call_function" or computed:
            self._nodes[node.op].append(node)
            self._known.add(node)

    def has(self, node: fx.Node) -> bool:
        """Whether the value of a node is known to follow the network."""
        return node in self._known

    def find(self, value: torch.Tensor, dtype: torch.dtype | None) -> fx.Node | None:
        """Returns a node on the device of `value`, of a given dtype; an input if there is one."""
        for node in (n for nodes in self._nodes.values() for n in nodes):
            known = node.meta["val"]
            if known.device == value.device and dtype in (None, known.dtype):
                return node
        return None


def _rewrite(node: fx.Node, names: frozenset[str], sources: _Sources) -> None:
    """Takes the named literals of a call from a source."""
    value = node.meta["val"]
    fixed = {} if "dtype" in names else {"dtype": value.dtype}
    if "device" not in names:
        fixed["device"] = value.device
    source = sources.find(value, value.dtype if "dtype" in names else None)
    if source is None:
        return
    if node.target in _LIKE and node.kwargs.get("memory_format") is None:
        rest = {
            k: v for k, v in node.kwargs.items() if k not in ("dtype", "device", "memory_format")
        }
        node.target = _LIKE[node.target]
        node.args, node.kwargs = (source, *node.args), {**rest, **fixed}
        return
    _convert(node, _typed(node, source, sources, fixed))


def _typed(node: fx.Node, source: fx.Node, sources: _Sources, fixed: dict[str, Any]) -> fx.Node:
    """Returns a tensor with the dtype and device that the result of a call must have."""
    value = node.meta["val"]
    if "dtype" in fixed and not value.dtype.is_floating_point:
        source = sources.find(value, value.dtype) or source
        if source.meta["val"].dtype == value.dtype:
            fixed = {k: v for k, v in fixed.items() if k == "device"}
    if not fixed or fixed == {"device": value.device}:
        return source
    with node.graph.inserting_before(node):
        return add_call(node, torch.ops.aten.new_empty.default, (source, [0]), fixed)


def _convert(node: fx.Node, like: fx.Node) -> None:
    """Converts the result of a call, or what it converts itself, to the dtype and device of another tensor."""
    if node.target in _CASTS and not (node.target in _MAY_COPY and get_argument(node, "copy")):
        node.target = torch.ops.aten.type_as.default
        node.args, node.kwargs = (node.args[0], like), {}
        return
    with node.graph.inserting_after(node):
        converted = add_call(node, torch.ops.aten.type_as.default, (node, like), {})
    node.replace_all_uses_with(converted, delete_user_cb=lambda user: user is not converted)
