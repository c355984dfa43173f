"""Makes constants follow the network to another dtype or device.

A captured graph spells the dtype and device of every tensor that it creates, also where the model's code took
them from an input or a parameter. Running that code once more, without data and with another dtype and device,
shows which is which: those that changed are taken from a tensor of the graph instead. So are numbers that are a limit
of the dtype, `torch.finfo(x.dtype).min`, `max` or `eps`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.limits import LARGEST_HALF, LIMITS, add_call, follow_limits
from fxprune.graph.mode import is_counter
from fxprune.graph.operands import get_argument
from fxprune.graph.program import describe
from fxprune.process.state import callers_device
from fxprune.remark import Remark
from fxprune.stand_in import stand_in
from fxprune.torch_private import WithoutData, every_call, overload

_META, _CPU = torch.device("meta"), torch.device("cpu")
_LIKE = {
    torch.ops.aten.zeros.default: torch.ops.aten.new_zeros.default,
    torch.ops.aten.ones.default: torch.ops.aten.new_ones.default,
    torch.ops.aten.full.default: torch.ops.aten.new_full.default,
    torch.ops.aten.empty.memory_format: torch.ops.aten.new_empty.default,
}
_OTHER_DTYPES = (torch.float64, torch.float32, torch.bfloat16)
_MAY_COPY = (torch.ops.aten.to.dtype, torch.ops.aten.to.dtype_layout, torch.ops.aten.to.device)
_CASTS = (*_MAY_COPY, torch.ops.aten._to_copy.default)


class Spelled(NamedTuple):
    """A call of an operator with its arguments that are a dtype, a device or a limit of a dtype, by name."""

    op: Any
    literals: dict[str, Any]


class Following(NamedTuple):
    """A call, the names of its literals that follow the network, and of its numbers that change with it otherwise."""

    call: Spelled
    names: frozenset[str]
    numbers: frozenset[str] = frozenset()


def find_following(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], graph: fx.GraphModule
) -> list[Following]:
    """Returns the calls of a network that spell a dtype, a device or a limit, in order, with what follows it.

    Args:
        model: the network.
        args: the example positional inputs.
        kwargs: the example keyword inputs.
        graph: its graph; the network does not run where the graph spells nothing.
    """
    before = [call for node in _nodes(graph) if (call := _spelled(node)) is not None]
    if not before:
        return []
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    tensors = [
        x for x in (*leaves, *model.parameters(), *model.buffers()) if isinstance(x, torch.Tensor)
    ]
    used = {x.dtype for x in tensors}
    dtype = next((d for d in _OTHER_DTYPES if d not in used), torch.float16)
    device = _CPU if any(x.is_meta for x in tensors) else _META

    def run(dtype: torch.dtype | None = None, device: torch.device | None = None) -> list[Spelled]:
        with stand_in(model) as twin, callers_device():
            return _run(WithoutData(twin, leaves, spec, dtype, device))

    for change in ((dtype, device), (dtype, None), (None, device)):
        after = run(*change)
        if not _alike(before, after):  # the graph lacks some calls, or has them in another order
            before = run()
        if after and _alike(before, after):
            pairs = zip(before, after, strict=True)
            return [Following(a, *_changed(a, b, *change)) for a, b in pairs]
    return []


def _alike(before: Sequence[Spelled], after: Sequence[Spelled]) -> bool:
    return [c.op for c in before] == [c.op for c in after]


def _run(model: WithoutData) -> list[Spelled]:
    """Returns calls that spell something, in order; none if the network cannot run, since then nothing follows."""
    calls: list[Spelled] = []

    def note(op: Any, args: Any, kwargs: Any, _result: Any) -> None:
        if literals := _literals(op, args, kwargs):
            calls.append(Spelled(op, literals))

    try:
        with every_call(note, autograd=False):
            torch.compiler.disable(model)()  # type: ignore[no-untyped-call]
    except Exception:
        return []
    return calls


def _changed(
    before: Spelled, after: Spelled, dtype: Any, device: Any
) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the names of the literals that follow, and of the numbers that change otherwise."""
    new = {"dtype": dtype, "device": device}
    follow, others = set[str](), set[str]()
    for name, x in before.literals.items():
        y = after.literals.get(name)
        if isinstance(x, float):
            kind = LIMITS[x].kind if x in LIMITS else ""
            if kind and y in LIMITS and LIMITS[y] == (kind, dtype):
                follow.add(name)
            elif y != x:
                others.add(name)
        elif x != y and y == new.get(name):
            follow.add(name)
    return frozenset(follow), frozenset(others)


def _nodes(graph: fx.GraphModule) -> Iterator[fx.Node]:
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def _spelled(node: fx.Node) -> Spelled | None:
    """Returns the call of a node that spells a dtype, a device or a limit."""
    op = overload(node)
    if op is None or op._opname.startswith("_assert"):
        return None
    literals = _literals(op, node.args, node.kwargs)
    return Spelled(op, literals) if literals else None


def _literals(op: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    names = [a.name for a in op._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {k: v for k, v in given.items() if _names_type(v) or _may_be_limit(v)}


def _names_type(value: Any) -> bool:
    return isinstance(value, torch.dtype | torch.device)


def _may_be_limit(value: Any) -> bool:
    """Returns whether a number is a limit of a dtype, or so large that it may be computed from one."""
    return isinstance(value, float) and (value in LIMITS or LARGEST_HALF < abs(value) < inf)


def follow_sources(graph: fx.Graph, following: Sequence[Following]) -> list[Remark]:
    """Takes what follows the network from a tensor of the graph, where there is one.

    Returns:
        A remark on each number that changes with the network's dtype, and stays as it is.
    """
    found = [(node, call) for node in graph.nodes if (call := _spelled(node)) is not None]
    known = _known([call for _, call in found], following)
    pairs = list(zip((node for node, _ in found), known, strict=True))
    left = _take(graph, {node: one.names for node, one in pairs})
    left += [(node, name) for node, one in pairs for name in one.numbers]
    return [_number_fixed(node, name) for node, name in left]


def _number_fixed(node: fx.Node, name: str) -> Remark:
    return Remark(
        "analysis",
        "capture.number-fixed",
        describe(node),
        f"its argument {name} stays as it was when the program is moved to another dtype",
        "the model computes this number from the dtype of the network; only torch.finfo(dtype).min, max and eps can "
        "be taken from a tensor, in operators that accept one there",
        "capture the model again in the other dtype",
    )


def follow_operands(graph: fx.Graph, call: fx.Node) -> None:
    """Takes from the operands what the decomposition of a call spells, unless the call itself spells it."""
    given = _spelled(call)
    operands = [n.meta["val"] for n in graph.find_nodes(op="placeholder")]
    known: set[Any] = {x.device for x in operands if isinstance(x, torch.Tensor)}
    known |= {x.dtype for x in operands if isinstance(x, torch.Tensor) and x.is_floating_point()}
    known -= set(given.literals.values()) if given else set()
    found = [(node, inner) for node in graph.nodes if (inner := _spelled(node)) is not None]
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
        if names - numbers:
            _rewrite(node, names - numbers, sources)
        sources.add(node, follows="dtype" in names)
    return left


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
        call = _spelled(node)
        spells = call is not None and any(map(_names_type, call.literals.values()))
        computed = bool(operands) and not spells and self._known.issuperset(operands)
        if follows or node.op != "call_function" or computed:
            self._nodes[node.op].append(node)
            self._known.add(node)

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
