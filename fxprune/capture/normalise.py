"""Rewrites a freshly exported graph into the form that the rules expect."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx

from fxprune.analysis.rulebook import find_rule
from fxprune.capture import functions
from fxprune.capture.autocast import NoCastError, spell_casts
from fxprune.capture.follow import Following, follow_operands, follow_sources
from fxprune.capture.inplace import make_functional, write_copies
from fxprune.errors import CaptureError
from fxprune.graph.inputs import FIXED, GUARDS
from fxprune.graph.memory import written_memory
from fxprune.graph.program import describe
from fxprune.remark import Remark
from fxprune.torch_private import (
    decompose,
    higher_order,
    operator_name,
    overload,
    static_size,
)

_KEPT_META = ("val", "nn_module_stack", "stack_trace", GUARDS, FIXED)
_NO_STACK = "_empty_nn_module_stack_from_metadata_hook"
_GUARDS = ("aten._assert", "aten.sym_constrain_range")
_MAX_DEPTH = 8
_SPLITS = {
    "aten.chunk",
    "aten.unsafe_chunk",
    "aten.split.Tensor",
    "aten.split.sizes",
    "aten.unsafe_split.Tensor",
    "aten.unsafe_split_with_sizes",
    "aten.tensor_split.sections",
    "aten.tensor_split.indices",
}
_VIEWS = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.view_as.default: torch.ops.aten.reshape_as.default,
}


def normalise(module: fx.GraphModule, following: Sequence[Following] = ()) -> list[Remark]:
    """Normalises the graph of `module` in place.

    Args:
        module: the module of an exported program, with get_attr nodes for parameters.
        following: the calls of the network whose dtype or device follows it.

    Returns:
        Remarks on what was changed.

    Raises:
        CaptureError: the network calls vmap or another function transform.
    """
    refuse_transforms(module.graph)
    kept = inline_regions(module)
    drop_guards(module.graph)
    trim_meta(module.graph)
    fixed = follow_sources(module.graph, following)
    write_copies(module.graph)
    remarks = kept + fixed + make_functional(module.graph)
    if decompose_without_rule(module):
        remarks += make_functional(module.graph)
    free_layouts(module.graph)
    spell_splits(module.graph)
    name_squeezed(module.graph)
    drop_aliases(module.graph)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    return remarks


def refuse_transforms(graph: fx.Graph) -> None:
    """Raises if the network calls a transform of torch.func: its graph would be incomplete and could not run."""
    for node in graph.nodes:
        if getattr(node.target, "__module__", "").startswith("torch._functorch"):
            raise CaptureError(
                "the model calls a function transform of torch.func, such as vmap",
                where=describe(node),
                why="torch.export records only where the transform begins and ends, and such a graph cannot run",
                do="write that computation for the whole batch, or capture the other parts with fp.capture_partial",
            )


def drop_guards(graph: fx.Graph) -> None:
    """Erases calls that only check inputs."""
    for node in reversed(list(graph.nodes)):
        name = str(node.target)
        if name == "_guards_fn" or name.startswith(_GUARDS):
            graph.erase_node(node)


def trim_meta(graph: fx.Graph) -> None:
    """Keeps only the metadata that fxprune reads; the rest would keep whole graphs in memory.

    The second call of a module is `path@1` in torch's module stack; it is renamed to the same module.
    """
    for node in graph.nodes:
        node.meta = {k: v for k, v in node.meta.items() if k in _KEPT_META}
        if stack := node.meta.get("nn_module_stack"):
            node.meta["nn_module_stack"] = {
                key: (re.sub(r"@\d+", "", path), kind)
                for key, (path, kind) in stack.items()
                if path != _NO_STACK
            }


def inline_regions(module: fx.GraphModule) -> list[Remark]:
    """Inlines `with no_grad()` and autocast regions, which an export turns into submodules.

    Inputs of a `no_grad()` region that would have a gradient are detached. In a region with autocast enabled, the
    casts that it makes become calls of their own; a region stays where casts do not have the same effect.

    Returns:
        A remark on each region that stays.
    """
    stay: dict[fx.Node, Remark] = {}
    while found := [n for n in module.graph.nodes if _is_region(n) and n not in stay]:
        trained = _depend_on_parameters(module)
        for node in found:
            try:
                _leave_autocast(module, node)
            except NoCastError as error:
                stay[node] = _autocast_remark(node, error)
            else:
                _inline_region(module, node, trained)
    return [*stay.values()]


def _leave_autocast(module: fx.GraphModule, node: fx.Node) -> None:
    """Lets a region compute the same without autocast, by calls that make the same casts."""
    if higher_order(node) == "wrap_with_autocast":
        device, dtype, enabled, _, body = node.args[:5]
        if enabled:
            spell_casts(
                getattr(module, str(cast(fx.Node, body).target)), str(device), cast(Any, dtype)
            )


def _autocast_remark(node: fx.Node, error: NoCastError) -> Remark:
    return Remark(
        "missed",
        "capture.autocast-kept",
        describe(node),
        "a region under autocast stays one call, and the axes that it reads stay as they are",
        str(error),
        "enter torch.autocast outside the model, around its call",
    )


def _depend_on_parameters(module: fx.GraphModule) -> set[fx.Node]:
    """Returns the nodes through whose values gradients would flow to a parameter."""
    trainable = {n for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.detach.default:
            continue
        parameter = node.op == "get_attr" and node.target in trainable
        if parameter or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _is_region(node: fx.Node) -> bool:
    return higher_order(node) in ("wrap_with_set_grad_enabled", "wrap_with_autocast")


def _inline_region(module: fx.GraphModule, node: fx.Node, trained: set[fx.Node]) -> None:
    of_gradients = higher_order(node) == "wrap_with_set_grad_enabled"
    at = 1 if of_gradients else 4
    source, operands = node.args[at], list(node.args[at + 1 :])
    assert isinstance(source, fx.Node)
    body = getattr(module, str(source.target))
    if of_gradients and node.args[0] is False:
        operands = [_detached(x, node) if x in trained else x for x in operands]
    _replace_by_graph(module, node, body, operands)
    if not source.users:
        module.graph.erase_node(source)
        module.delete_submodule(str(source.target))


def _detached(value: Any, region: fx.Node) -> fx.Node:
    with region.graph.inserting_before(region):
        node = region.graph.call_function(torch.ops.aten.detach.default, (value,))
    kept = ("nn_module_stack", "stack_trace")
    node.meta = {"val": value.meta["val"], **{k: region.meta[k] for k in kept if k in region.meta}}
    return node


def decompose_without_rule(module: fx.GraphModule) -> bool:
    """Replaces operators without a rule by their decomposition, if torch has one.

    Returns:
        Whether anything was replaced.
    """
    pending = [(node, 0) for node in module.graph.nodes]
    changed = False
    while pending:
        node, depth = pending.pop()
        op = overload(node)
        if op is None or depth == _MAX_DEPTH or find_rule(op) is not None:
            continue
        if op.namespace == functions.NAMESPACE:  # its decomposition has another backward
            continue
        if not node.users and not op._schema.is_mutable:
            continue
        if (step := decompose(op, node.args, node.kwargs)) is None or _is_itself(step[0], op):
            continue
        follow_operands(step[0].graph, node)
        new: list[fx.Node] = []
        if _replace_by_graph(module, node, *step, new):
            changed = True
            pending += [(n, depth + 1) for n in new]
    return changed


def _is_itself(body: fx.GraphModule, op: Any) -> bool:
    return any(n.target is op for n in body.graph.nodes)


def _replace_by_graph(
    module: fx.GraphModule,
    node: fx.Node,
    body: fx.GraphModule,
    operands: list[Any],
    into: list[fx.Node] | None = None,
) -> bool:
    """Replaces `node` by the nodes of `body`; returns false where the users of the node do not allow it."""
    several = not isinstance(_result(body), fx.Node)
    if several and any(u.target is not operator.getitem for u in node.users):
        return False
    known: dict[fx.Node, Any] = {}
    values = iter(operands)
    with module.graph.inserting_before(node):
        for old in body.graph.nodes:
            if old.op == "placeholder":
                known[old] = next(values)
            elif old.op != "output":
                known[old] = _copy(module, body, old, known, node)
                if into is not None:
                    into.append(known[old])
    result = fx.node.map_arg(_result(body), lambda n: known[n])
    _redirect(node, result, several=several)
    return True


def _result(body: fx.GraphModule) -> Any:
    return body.graph.output_node().args[0]


def _copy(
    module: fx.GraphModule,
    body: fx.GraphModule,
    old: fx.Node,
    known: dict[fx.Node, Any],
    like: fx.Node,
) -> fx.Node:
    new = module.graph.node_copy(old, lambda n: known[n])
    new.meta = {k: v for k, v in old.meta.items() if k in _KEPT_META}
    for key in ("nn_module_stack", "stack_trace"):
        if key in like.meta and not old.meta.get("nn_module_stack"):
            new.meta[key] = like.meta[key]
    if old.op == "get_attr":
        new.target = _adopt(module, body, str(old.target))
    return new


def _adopt(module: fx.GraphModule, body: fx.GraphModule, name: str) -> str:
    """Gives `module` an attribute of `body`, under an unused name."""
    value: Any = body
    for part in name.split("."):
        value = getattr(value, part)
    count, free = 0, name.replace(".", "_")
    while hasattr(module, free) and getattr(module, free) is not value:
        count, free = count + 1, f"{name.replace('.', '_')}_{count}"
    if isinstance(value, torch.Tensor):
        module.register_buffer(free, value, persistent=False)
    else:
        setattr(module, free, value)
    return free


def _redirect(node: fx.Node, result: Any, *, several: bool) -> None:
    if not several:
        node.replace_all_uses_with(result)
    for user in list(node.users):
        user.replace_all_uses_with(result[user.args[1]])
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def free_layouts(graph: fx.Graph) -> None:
    """Replaces views by reshapes where nothing is written through them.

    A view is possible only in some memory layouts, and kernels choose their layout by sizes, dtype and
    gradients. A `.contiguous()` call that would have ensured it is missing from the graph if there was
    nothing to copy during capture.
    """
    written = written_memory(graph)
    for node in graph.nodes:
        if node.target in _VIEWS and node not in written:
            node.target = _VIEWS[node.target]


def spell_splits(graph: fx.Graph) -> None:
    """Replaces chunk, split and tensor_split by `split_with_sizes` where the sizes are numbers."""
    for node in list(graph.nodes):
        op = overload(node)
        if op is None or operator_name(op) not in _SPLITS:
            continue
        dim = _argument(node, "dim", 2, 0)
        sizes = [static_size(x.shape[dim]) for x in node.meta["val"]]
        if all(s is not None for s in sizes):
            node.target = torch.ops.aten.split_with_sizes.default
            node.args, node.kwargs = (node.args[0], sizes, dim), {}


def name_squeezed(graph: fx.Graph) -> None:
    """Gives squeeze the axes of length 1 that it drops; other axes must not be dropped once pruned to length 1."""
    for node in list(graph.nodes):
        op = overload(node)
        if op is None or op._schema.name != "aten::squeeze":
            continue
        source = node.args[0].meta["val"]
        dim = _argument(node, "dim", 1, None)
        named = range(source.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
        ones = [d for d in named if static_size(source.shape[d]) == 1] if source.dim() else []
        node.target = torch.ops.aten.squeeze.dims
        node.args, node.kwargs = (node.args[0], ones), {}


def _argument(node: fx.Node, name: str, position: int, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def drop_aliases(graph: fx.Graph) -> None:
    """Erases `aten.alias`, which returns its input."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
