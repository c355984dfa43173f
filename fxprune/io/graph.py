"""The graph on disk: torch's .pt2 format without weights, and what fxprune knows about its nodes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from fxprune.capture import capture
from fxprune.cost.macs import example_symbols
from fxprune.graph.evaluate import flat_inputs
from fxprune.graph.mode import MODE
from fxprune.graph.program import Program, source_line
from fxprune.graph.sizes import Sizes, symbolic_axes

Known = dict[str, Any]
Stack = tuple[tuple[str, str, str], ...]


def save_graph(program: Program, path: Path) -> Known:
    """Writes the graph; returns the module stacks, source lines and modes of its calls."""
    exported = _export(program)
    _drop_weights(exported)
    exported.example_inputs = (program.args, dict(program.kwargs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(exported, path)
    return _known(program.graph)


def load_graph(path: Path) -> Program:
    """Reads a program from a file, with its weights on the meta device and its example inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return capture(torch.export.load(path))


def _export(program: Program) -> ExportedProgram:
    args, kwargs, free = _export_inputs(program)
    collection = ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor, axes in free:
        collection[tensor] = dict.fromkeys(axes, Dim.AUTO)
    shapes = collection.dynamic_shapes(  # type: ignore[no-untyped-call]
        program.module, args, kwargs
    )
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(
            program.module, args, kwargs, dynamic_shapes=shapes, strict=False
        )


def _export_inputs(
    program: Program,
) -> tuple[tuple[Any, ...], dict[str, Any], list[tuple[torch.Tensor, frozenset[int]]]]:
    """Copies the example inputs; free axes get a length of at least 2, since torch treats 1 as a constant."""
    sizes = Sizes.of_symbols({s: max(2, n) for s, n in example_symbols(program).items()})
    flat = flat_inputs(program.module, program.args, program.kwargs)
    fakes = {
        id(x): node.meta.get("val")
        for node, x in zip(program.graph.find_nodes(op="placeholder"), flat, strict=True)
    }
    free: list[tuple[torch.Tensor, frozenset[int]]] = []

    def longer(tensor: torch.Tensor) -> torch.Tensor:
        fake, out = fakes[id(tensor)], tensor.detach().clone()
        for axis in symbolic_axes(fake):
            rows = torch.arange(sizes.number(fake.shape[axis])) % tensor.shape[axis]
            out = out.index_select(axis, rows.to(out.device))
        free.append((out, symbolic_axes(fake)))
        return out

    args, kwargs = pytree.tree_map_only(torch.Tensor, longer, (program.args, dict(program.kwargs)))
    return args, kwargs, [(x, axes) for x, axes in free if axes]


def _drop_weights(exported: ExportedProgram) -> None:
    """Replaces the weights, which are saved separately, by meta tensors."""
    for name, tensor in list(exported.state_dict.items()):
        empty = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, torch.nn.Parameter):
            empty = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
        exported.state_dict[name] = empty


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function"]


def _pairs(rows: Sequence[Known], calls: Sequence[fx.Node]) -> Iterator[tuple[Known, fx.Node]]:
    """Pairs what was known about calls with the calls of the graph that was read back."""
    a, b = [row["target"] for row in rows], [str(n.target) for n in calls]
    if a == b:
        yield from zip(rows, calls, strict=True)
        return
    for i, j, size in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        yield from zip(rows[i : i + size], calls[j : j + size], strict=True)


def _known(graph: fx.Graph) -> Known:
    """Returns what is known about each call; equal stacks are stored once."""
    stacks: dict[Stack, int] = {}
    rows: list[Known] = []
    for node in _calls(graph):
        stack = stacks.setdefault(_stack(node), len(stacks))
        row = {"name": node.name, "target": str(node.target), "stack": stack}
        rows.append(row | {"line": source_line(node)})
        if MODE in node.meta:
            rows[-1]["mode"] = list(node.meta[MODE])
    return {"stacks": list(stacks), "calls": rows}


def _stack(node: fx.Node) -> Stack:
    """Returns key, path and class of each module around a node, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(
        (key, path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}")
        for key, (path, kind) in stack.items()
    )


def restore(graph: fx.Graph, known: Mapping[str, Any]) -> fx.Graph:
    """Restores names, module stacks, source lines and modes of a graph's nodes."""
    calls = _calls(graph)
    for node in calls:
        for key in ("nn_module_stack", "stack_trace", MODE):
            node.meta.pop(key, None)
    for row, node in _pairs(known["calls"], calls):
        _restore_node(node, row, known["stacks"][row["stack"]])
    return copy.deepcopy(graph)  # a copy takes the names as they are


def _restore_node(node: fx.Node, row: Mapping[str, Any], stack: Sequence[Sequence[str]]) -> None:
    node.name = row["name"]
    if stack:
        node.meta["nn_module_stack"] = {key: (path, kind) for key, path, kind in stack}
    if row["line"]:
        path, _, line = row["line"].rpartition(":")
        node.meta["stack_trace"] = f'  File "{path}", line {line}, in forward\n'
    if "mode" in row:
        node.meta[MODE] = tuple(row["mode"])
