"""The graph on disk: nodes in order as JSON, with what is known of their values, modules and lines.

Loading builds the nodes and calls nothing: operators are looked up, sizes are put together from a closed
list of functions, and every name is checked, since torch.fx writes Python code with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import LoadError
from fxprune.files.document import Entry
from fxprune.graph.gc_pause import without_collection
from fxprune.graph.inputs import FIXED, GUARDS
from fxprune.graph.leaf import Leaf
from fxprune.graph.mode import MODE
from fxprune.graph.program import Program, share_tensors, source_line
from fxprune.io.arguments import misfit
from fxprune.io.identifier import check_identifier, is_identifier, read_identifier
from fxprune.io.nesting import read_nesting, write_nesting
from fxprune.io.operators import operator_text, read_operator
from fxprune.io.plain import Reader, Writer, read_device, read_dtype
from fxprune.io.sizes import LoadedSizes, Number, SavedSizes
from fxprune.torch_private import input_codegen, input_names, pytree_specs

Json = dict[str, Any]
Stack = tuple[tuple[str, str, str], ...]
_OPS = ("placeholder", "get_attr", "call_function", "call_module", "output")


def write_graph(program: Program) -> Json:
    """The graph of a program, and those of its branches, as JSON.

    Raises:
        LoadError: names what cannot be saved.
    """
    writer = _GraphWriter()
    nodes, graphs = writer.nodes(program.module, program.graph), writer.graphs(program.module)
    return {
        "symbols": writer.sizes.symbols(),
        "stacks": list(writer.stacks),
        "nested": _nested(program.graph),
        "graphs": graphs,
        "nodes": nodes,
    }


def _nested(graph: fx.Graph) -> Json | None:
    """Names of the inputs, and how inputs and outputs are nested; None for a graph of flat ones."""
    if (specs := pytree_specs(graph)) is None:
        return None
    names = [check_identifier(name, "inputs") for name in input_names(graph)]
    return {
        "names": names,
        "inputs": write_nesting(specs[0], "inputs"),
        "outputs": write_nesting(specs[1], "outputs"),
    }


class _GraphWriter:
    def __init__(self) -> None:
        self.sizes = SavedSizes()
        self.stacks: dict[Stack, int] = {}
        numbers = {"size": (Number, self.sizes.write)}
        self._values = Writer({"tensor": (torch.Tensor, self._tensor), **numbers})
        operators = {"operator": (torch._ops.OpOverload, lambda op: operator_text(op, "arguments"))}
        self._arguments = Writer({"node": (fx.Node, str), **numbers, **operators})

    def nodes(self, root: nn.Module, graph: fx.Graph) -> list[Json]:
        return [self._node(root, node) for node in graph.nodes]

    def graphs(self, root: nn.Module) -> Json:
        """The graphs of branches by path; those inside them have longer paths."""
        found = ((p, m) for p, m in root.named_modules() if p and isinstance(m, fx.GraphModule))
        return {path: self.nodes(module, module.graph) for path, module in found}

    def _node(self, root: nn.Module, node: fx.Node) -> Json:
        where = f"node {node.name}"
        check_identifier(node.name, where)
        row: Json = {"op": node.op, "name": node.name, "target": self._target(root, node)}
        if node.args:
            row["args"] = [self._arguments.write(x, where) for x in node.args]
        if node.kwargs:
            row["kwargs"] = {
                check_identifier(k, where): self._arguments.write(x, where)
                for k, x in node.kwargs.items()
            }
        if "val" in node.meta:
            row["value"] = self._values.write(_value(root, node), f"{where}, its value")
        if stack := _stack(node):
            row["stack"] = self.stacks.setdefault(stack, len(self.stacks))
        if line := source_line(node):
            row["line"] = line
        if GUARDS in node.meta:
            row["guards"] = [self._values.write(x, where) for x in node.meta[GUARDS]]
        if FIXED in node.meta:
            row["fixed"] = {str(axis): why for axis, why in node.meta[FIXED].items()}
        if MODE in node.meta:
            row["mode"] = [self._arguments.write(x, where) for x in node.meta[MODE]]
        return row

    def _target(self, root: nn.Module, node: fx.Node) -> str:
        where = f"node {node.name}"
        if node.op == "call_function":
            return operator_text(node.target, where)
        if node.op not in _OPS:
            raise LoadError(
                f"a node of the kind {node.op} cannot be saved",
                where=where,
                do="capture the module again: fp.capture(program.module, args)",
            )
        name = str(node.target)
        if node.op == "placeholder":
            return check_identifier(name, where)
        if node.op == "get_attr" and not isinstance(
            value := _attribute(root, name), torch.Tensor | fx.GraphModule
        ):
            raise LoadError(
                f"a {type(value).__name__} that the graph reads cannot be saved",
                where=f"{where}, {name}",
                why="only tensors and graphs of branches can",
            )
        return name

    def _tensor(self, x: torch.Tensor) -> Json:
        if x.layout != torch.strided:
            raise LoadError(f"a tensor of layout {x.layout} cannot be saved")
        row = {
            "dtype": str(x.dtype).removeprefix("torch."),
            "shape": [self.sizes.write(n) for n in x.shape],
            "stride": [self.sizes.write(n) for n in x.stride()],
            "device": str(x.device),
        }
        return row | ({"grad": True} if x.requires_grad else {})


def _stack(node: fx.Node) -> Stack:
    """Returns key, path and class of each module around a node, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(
        (key, path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}")
        for key, (path, kind) in stack.items()
    )


def _attribute(root: nn.Module, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(path), leaf, None)


@without_collection()
def read_graph(entry: Entry, tree: nn.Module) -> fx.Graph:
    """The graph that `write_graph` wrote.

    Args:
        entry: the JSON.
        tree: holds the tensors and leaf modules; the graphs of branches are put into it.
    """
    facts = entry.record("symbols", "stacks", "nested", "graphs", "nodes")
    reader = _GraphReader(facts)
    paths = facts["graphs"].mapping()
    for path in sorted(paths, key=lambda p: -p.count(".")):  # the inner ones first
        reader.put_branch(tree, path, paths[path])
    graph = reader.graph(tree, facts["nodes"])
    if facts["nested"].value is not None:
        _nest(graph, facts["nested"])
    return graph


def _nest(graph: fx.Graph, entry: Entry) -> None:
    facts = entry.record("names", "inputs", "outputs")
    names = [read_identifier(e) for e in facts["names"].items()]
    inputs = read_nesting(facts["inputs"])
    places = len(graph.find_nodes(op="placeholder"))
    # torch.fx writes the keys into the code of `forward`.
    tops = facts["inputs"].mapping().get("tuple")
    args, kwargs = tops.items(2) if tops is not None else facts["inputs"].items(2)
    pairs = kwargs.record("dict")["dict"].items()
    for pair in pairs:
        read_identifier(pair.items(2)[0])
    count = len(args.record("tuple")["tuple"].items()) + len(pairs)
    if len(set(names)) < len(names) or count != len(names) or inputs.num_leaves != places:
        entry.fail("does not fit the inputs of the graph", "save it again")
    graph.set_codegen(input_codegen(names, inputs, read_nesting(facts["outputs"])))


class _GraphReader:
    def __init__(self, facts: Mapping[str, Entry]) -> None:
        self._sizes = LoadedSizes(facts["symbols"])
        self._stacks = [_read_stack(e) for e in facts["stacks"].items()]
        self._nodes: dict[str, fx.Node] = {}
        self._values = Reader({"tensor": self._tensor, "size": self._sizes.read})
        self._arguments = Reader(
            {"node": self._find, "size": self._sizes.read, "operator": read_operator}
        )

    def put_branch(self, tree: nn.Module, path: str, entry: Entry) -> None:
        """Makes a module of the graph of a branch; the tensors at its path become its own."""
        *owners, name = path.split(".")
        owner = tree
        for part in (*owners, name):
            if owner._modules.get(part) is None:
                try:
                    owner.add_module(part, nn.Module())
                except KeyError as error:
                    entry.fail(f"{path[:80]!r} is no name of a graph: {error}", "save it again")
            above, owner = owner, owner._modules[part]  # type: ignore[assignment]
        if isinstance(owner, Leaf | fx.GraphModule):
            entry.fail(f"{path[:80]!r} is something else", "save it again")
        module = fx.GraphModule(nn.Module(), fx.Graph())
        share_tensors(owner, module)
        for child, found in owner._modules.items():
            if isinstance(found, fx.GraphModule):
                module._modules[child] = found
        module.graph = self.graph(owner, entry)
        above._modules[name] = module

    def graph(self, root: nn.Module, entry: Entry) -> fx.Graph:
        graph, self._nodes = fx.Graph(), {}
        for row in entry.items():
            self._add(graph, root, row)
        if not self._nodes or next(reversed(self._nodes.values())).op != "output":
            entry.fail("do not end with an output", "save it again")
        return graph

    def _add(self, graph: fx.Graph, root: nn.Module, row: Entry) -> None:
        facts = row.record(
            *("op", "name", "target"),
            optional=("args", "kwargs", "value", "stack", "line", "mode", "guards", "fixed"),
        )
        op, name = facts["op"].text(_OPS), read_identifier(facts["name"])
        if name in self._nodes or any(n.op == "output" for n in list(self._nodes.values())[-1:]):
            row.fail(f"{name[:80]!r} stands twice, or after the output", "save it again")
        args = tuple(map(self._arguments.read, facts["args"].items())) if "args" in facts else ()
        kwargs = (
            {
                _keyword(key, value): self._arguments.read(value)
                for key, value in facts["kwargs"].mapping().items()
            }
            if "kwargs" in facts
            else {}
        )
        target = self._target(root, op, facts["target"])
        if isinstance(target, torch._ops.OpOverload) and (why := misfit(target, args, kwargs)):
            row.fail(f"calls {target} with {why}", "save it again")
        node = graph.create_node(op, target, args, kwargs, name)
        if node.name != name:
            facts["name"].fail(f"is {name[:80]!r}, which Python's own code uses", "save it again")
        self._nodes[name] = node
        self._describe(node, root, facts)

    def _target(self, root: nn.Module, op: str, entry: Entry) -> Any:
        if op == "call_function":
            return read_operator(entry)
        if op == "placeholder":
            return read_identifier(entry)
        name = entry.text()
        if op == "output":
            return entry.text(("output",))
        wanted = Leaf if op == "call_module" else torch.Tensor | fx.GraphModule
        if not isinstance(_held(root, name), wanted):
            entry.fail(f"there is no {name[:80]!r} of that kind", "save it again")
        return name

    def _describe(self, node: fx.Node, root: nn.Module, facts: Mapping[str, Entry]) -> None:
        if "value" in facts:
            node.meta["val"] = self._values.read(facts["value"])
            held = _held(root, str(node.target)) if node.op == "get_attr" else None
            if isinstance(held, torch.Tensor) and not _is_like(node.meta["val"], held):
                facts["value"].fail(
                    f"is no {held.dtype} of shape {list(held.shape)}", "save it again"
                )
        if "stack" in facts:
            number = facts["stack"].integer(0, len(self._stacks) - 1)
            node.meta["nn_module_stack"] = dict(self._stacks[number])
        if "line" in facts:
            path, _, line = " ".join(facts["line"].text().splitlines()).rpartition(":")
            node.meta["stack_trace"] = f'  File "{path}", line {line}, in forward\n'
        self._limit(node, facts)
        if "mode" in facts:
            train, evaluate = map(self._arguments.read, facts["mode"].items(2))
            node.meta[MODE] = (train, evaluate)

    def _limit(self, node: fx.Node, facts: Mapping[str, Entry]) -> None:
        """Reads under which conditions the graph holds, and why axes of an input are fixed."""
        if "guards" in facts:
            guards = [self._values.read(e) for e in facts["guards"].items()]
            if not all(isinstance(g, bool | torch.SymBool) for g in guards):
                facts["guards"].fail("are no conditions on sizes", "save it again")
            node.meta[GUARDS] = [g for g in guards if isinstance(g, torch.SymBool)]
        if "fixed" in facts:
            rank = len(getattr(node.meta.get("val"), "shape", ()))
            reasons = facts["fixed"].mapping()
            if not all(key.isdecimal() and int(key) < rank for key in reasons):
                facts["fixed"].fail("names axes that the input does not have", "save it again")
            node.meta[FIXED] = {int(key): e.text() for key, e in reasons.items()}

    def _find(self, entry: Entry) -> fx.Node:
        name = entry.text()
        if name not in self._nodes:
            entry.fail(f"there is no node {name[:80]!r} before it", "save it again")
        return self._nodes[name]

    def _tensor(self, entry: Entry) -> torch.Tensor:
        facts = entry.record("dtype", "shape", "stride", "device", optional=("grad",))
        shape, stride = (
            [self._sizes.size(e) for e in facts[k].items()] for k in ("shape", "stride")
        )
        if len(shape) != len(stride):
            entry.fail("has strides for other axes", "save it again")
        try:
            value = self._sizes.tensor(
                shape, stride, read_dtype(facts["dtype"]), read_device(facts["device"])
            )
            return value.requires_grad_("grad" in facts and facts["grad"].flag())
        except RuntimeError as error:
            entry.fail(f"is no tensor: {str(error)[:200]}", "save it again")


def _keyword(key: str, entry: Entry) -> str:
    if not is_identifier(key):
        entry.fail("is no name of an argument", "save it again")
    return key


def _read_stack(entry: Entry) -> dict[str, tuple[str, str]]:
    rows = (row.items(3) for row in entry.items())
    return {key.text(): (path.text(), kind.text()) for key, path, kind in rows}


def _held(root: nn.Module, name: str) -> Any:
    """The tensor or module that a module holds under a name; None for any other attribute."""
    path, _, leaf = name.rpartition(".")
    owner: nn.Module | None = root
    for part in path.split(".") if path else ():
        owner = owner._modules.get(part) if owner is not None else None
    if owner is None:
        return None
    return next(
        (
            store[leaf]
            for store in (owner._parameters, owner._buffers, owner._modules)
            if store.get(leaf) is not None
        ),
        None,
    )


def _value(root: nn.Module, node: fx.Node) -> Any:
    """The example value of a node; a buffer that an operator has resized since is its own."""
    value = node.meta["val"]
    held = _attribute(root, str(node.target)) if node.op == "get_attr" else None
    resized = isinstance(held, torch.Tensor) and not _is_like(value, held)
    return held if resized else value


def _is_like(value: Any, held: torch.Tensor) -> bool:
    known = isinstance(value, torch.Tensor)
    return known and (value.dtype, list(value.shape)) == (held.dtype, list(held.shape))
