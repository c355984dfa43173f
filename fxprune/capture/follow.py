"""Makes constants follow the network to another dtype or device.

A captured graph spells the dtype and device of every tensor that it creates, also where the model's code took
them from an input or a parameter. Running that code once more, without data and with another dtype and device,
shows which is which: those that changed are taken from a tensor of the graph instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph.operands import get_argument
from fxprune.process.state import callers_device
from fxprune.stand_in import stand_in
from fxprune.torch_private import WithoutData, every_call, fake_result, overload

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
_ORIGIN = ("nn_module_stack", "stack_trace")


class Spelled(NamedTuple):
    """A call of an operator with its arguments that are a dtype or a device, by name."""

    op: Any
    literals: dict[str, Any]


class Following(NamedTuple):
    """A call, and those of its literals that change with the network's dtype and device."""

    call: Spelled
    names: frozenset[str]


def find_following(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], graph: fx.GraphModule
) -> list[Following]:
    """Returns the calls of a network that spell a dtype or device, in order, with the literals that follow it.

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
            return [Following(a, _changed(a, b, *change)) for a, b in pairs]
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


def _changed(before: Spelled, after: Spelled, dtype: Any, device: Any) -> frozenset[str]:
    new = {"dtype": dtype, "device": device}
    return frozenset(
        name
        for name, x in before.literals.items()
        if x != (y := after.literals.get(name)) and y == new.get(name)
    )


def _nodes(graph: fx.GraphModule) -> Iterator[fx.Node]:
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def _spelled(node: fx.Node) -> Spelled | None:
    """Returns the call of a node that spells a dtype or device."""
    op = overload(node)
    if op is None or op._opname.startswith("_assert"):
        return None
    literals = _literals(op, node.args, node.kwargs)
    return Spelled(op, literals) if literals else None


def _literals(op: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    names = [a.name for a in op._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {k: v for k, v in given.items() if isinstance(v, torch.dtype | torch.device)}


def follow_sources(graph: fx.Graph, following: Sequence[Following]) -> None:
    """Takes dtypes and devices that follow the network from a tensor of the graph, where there is one."""
    found = [(node, call) for node in graph.nodes if (call := _spelled(node)) is not None]
    names = _names([call for _, call in found], following)
    _take(graph, {node: which for (node, _), which in zip(found, names, strict=True)})


def follow_operands(graph: fx.Graph, call: fx.Node) -> None:
    """Takes from the operands what the decomposition of a call spells, unless the call itself spells it."""
    given = _spelled(call)
    operands = [n.meta["val"] for n in graph.find_nodes(op="placeholder")]
    known: set[Any] = {x.device for x in operands if isinstance(x, torch.Tensor)}
    known |= {x.dtype for x in operands if isinstance(x, torch.Tensor) and x.is_floating_point()}
    known -= set(given.literals.values()) if given else set()
    found = [(node, inner) for node in graph.nodes if (inner := _spelled(node)) is not None]
    _take(graph, {n: frozenset(k for k, x in c.literals.items() if x in known) for n, c in found})


def _take(graph: fx.Graph, changes: Mapping[fx.Node, frozenset[str]]) -> None:
    """Takes the named literals of calls from sources."""
    if not any(changes.values()):
        return
    sources = _Sources()
    for node in list(graph.nodes):
        if changes.get(node):
            _rewrite(node, changes[node], sources)
        sources.add(node, follows="dtype" in changes.get(node, ()))


def _names(calls: list[Spelled], following: Sequence[Following]) -> list[frozenset[str]]:
    """Returns which literals of each call follow; where calls are missing, equal ones must agree on it."""
    if calls == [f.call for f in following]:
        return [f.names for f in following]
    agreed: list[frozenset[str]] = []
    for call in calls:
        alike = {f.names for f in following if f.call == call}
        agreed.append(alike.pop() if len(alike) == 1 else frozenset())
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
        """Adds a node whose value is a tensor of the network's dtype."""
        value = node.meta.get("val")
        if node.op not in self._nodes or not isinstance(value, torch.Tensor):
            return
        operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        computed = bool(operands) and _spelled(node) is None and self._known.issuperset(operands)
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
        return _call(node, torch.ops.aten.new_empty.default, (source, [0]), fixed)


def _convert(node: fx.Node, like: fx.Node) -> None:
    """Converts the result of a call, or what it converts itself, to the dtype and device of another tensor."""
    if node.target in _CASTS and not (node.target in _MAY_COPY and get_argument(node, "copy")):
        node.target = torch.ops.aten.type_as.default
        node.args, node.kwargs = (node.args[0], like), {}
        return
    with node.graph.inserting_after(node):
        converted = _call(node, torch.ops.aten.type_as.default, (node, like), {})
    node.replace_all_uses_with(converted, delete_user_cb=lambda user: user is not converted)


def _call(like: fx.Node, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
    name = op.overloadpacket.__name__
    new = like.graph.create_node("call_function", op, args, kwargs, name)
    new.meta = {k: like.meta[k] for k in _ORIGIN if k in like.meta}
    new.meta["val"] = fake_result(op, args, kwargs)
    return new
