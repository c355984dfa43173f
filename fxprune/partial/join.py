"""One program of all parts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph.evaluate import flat_inputs
from fxprune.graph.program import Program, build_module, share_tensors
from fxprune.partial.parts import Part


def join_parts(model: nn.Module, parts: Sequence[Part]) -> Program:
    """The parts side by side; tensors that the rest of the model uses too are outputs, so frozen."""
    graph, tree = fx.Graph(), nn.Module()
    share_tensors(model, tree)
    args: list[Any] = []
    for i, part in enumerate(parts):
        args += _placeholders(graph, part, i)
    returned: list[fx.Node] = []
    for i, part in enumerate(parts):
        returned += _copy_part(graph, tree, part, i)
    returned += _shared_outside(graph, model, parts)
    graph.output(tuple(returned))
    graph.lint()
    module = build_module(tree, graph, training=model.training)
    remarks = tuple(r for p in parts for r in p.program.remarks)
    return Program(module, tuple(args), {}, False, type(model).__name__, remarks)


def _placeholders(graph: fx.Graph, part: Part, number: int) -> list[Any]:
    """Makes the inputs of a part; their example values."""
    for node in part.program.graph.find_nodes(op="placeholder"):
        part.nodes[node] = graph.placeholder(f"part{number}_{node.name}")
        part.nodes[node].meta = _meta(node, part.path)
    program = part.program
    return flat_inputs(program.module, program.args, program.kwargs)


def _copy_part(graph: fx.Graph, tree: nn.Module, part: Part, number: int) -> list[fx.Node]:
    """Copies the operators of a part; what it returns."""
    for node in part.program.nodes:
        if node.op in ("placeholder", "output"):
            continue
        new = graph.node_copy(node, lambda n: part.nodes[n])
        new.meta = _meta(node, part.path)
        if node.op == "get_attr":
            new.target = _adopt(tree, part, str(node.target), number)
        part.nodes[node] = new
    returned = part.program.graph.output_node().args[0]
    return [part.nodes[n] for n in pytree.tree_leaves(returned) if isinstance(n, fx.Node)]


def _meta(node: fx.Node, path: str) -> dict[str, Any]:
    """The node's metadata with module paths from the root of the model."""
    meta = dict(node.meta)
    if stack := meta.get("nn_module_stack"):
        meta["nn_module_stack"] = {k: (path_under(path, p), kind) for k, (p, kind) in stack.items()}
    return meta


def path_under(path: str, name: str) -> str:
    """A name of a submodule from the root of the model."""
    return ".".join(p for p in (path, name) if p)


def _adopt(tree: nn.Module, part: Part, name: str, number: int) -> str:
    """The name in the model of what a part calls `name`; constants of a part get one of their own."""
    value = get_tensor(part.program.module, name)
    full = path_under(part.path, name)
    try:
        if get_tensor(tree, full) is value:
            return full
    except AttributeError:
        pass
    own = f"part{number}_{name.replace('.', '_')}"
    if isinstance(value, torch.Tensor):
        tree.register_buffer(own, value, persistent=False)
    else:
        setattr(tree, own, value)
    return own


def get_tensor(tree: nn.Module, name: str) -> Any:
    """What a dotted name stands for; AttributeError where nothing does."""
    value: Any = tree
    for piece in name.split("."):
        value = getattr(value, piece)
    return value


def _shared_outside(graph: fx.Graph, model: nn.Module, parts: Sequence[Part]) -> list[fx.Node]:
    """Nodes for tensors of parts that modules outside hold too, under another name."""
    inside = tuple(f"{p.path}." if p.path else "" for p in parts)
    tensors: list[tuple[str, torch.Tensor]] = list(model.named_parameters(remove_duplicate=False))
    tensors += model.named_buffers(remove_duplicate=False)
    outside = {id(t) for name, t in tensors if not name.startswith(inside)}
    shared = {id(t): name for name, t in tensors if name.startswith(inside) and id(t) in outside}
    return [graph.get_attr(name) for name in shared.values()]
