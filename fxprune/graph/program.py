"""The `Program`: a captured network as a torch.fx graph of ATen calls, with its example inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import fx

from fxprune.errors import OptionError
from fxprune.graph.batch_norms import follow_momentum, name_batch_norms
from fxprune.graph.free_axes import FreeAxis, free_axes
from fxprune.graph.inputs import bind_inputs, check_inputs
from fxprune.graph.leaf import Leaf
from fxprune.graph.lean.lean_graph import run_lean
from fxprune.graph.mode import MODE, set_training
from fxprune.markup import first_rows, join, tag
from fxprune.remark import Remark
from fxprune.torch_private import higher_order, overload


class TracedModule(fx.GraphModule):
    """A `GraphModule` whose `train()` and `eval()` also switch batch norm and dropout in its graph.

    It can be pickled with its tensors, graph and mode, and with the name, module and source line of
    each node. Pickling loses the shapes that were inferred for the nodes; `fp.save` keeps them.

    Attributes:
        momenta_changed: whether a batch norm was given another momentum since the last `train()`.
    """

    momenta_changed = False

    def train(self, mode: bool = True) -> TracedModule:
        """Sets train or eval mode; returns the module."""
        super().train(mode)
        changed = set_training(self, mode)
        if follow_momentum(self, mode) or changed:
            self.recompile()
        self.momenta_changed = False
        return self

    def recompile(self) -> Any:
        """Writes `forward` anew, after a change of the graph; with gates it runs in its lean form, see `run_lean`."""
        code = super().recompile()
        if self.graph.find_nodes(op="call_module"):
            kind: Any = type(self)
            kind.forward = run_lean(kind.forward)
        return code

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the graph.

        Raises:
            InputError: the graph does not hold for these inputs.
        """
        if self.momenta_changed:
            self.train(self.training)
        try:
            return super().__call__(*args, **kwargs)
        except TypeError:
            bind_inputs(self, args, kwargs)
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        # GraphModule's own traces its code again: marks, names and the structure of inputs are lost.
        tree = torch.nn.Module()
        share_tensors(self, tree)
        share_objects(self, tree, self.graph)
        return _unpickled, (tree, _rows(self.graph), self.graph._codegen, self.training)


@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """A captured network; `fp.capture` creates one.

    A program can be called like the model. fxprune never changes it in place, except for `train()`
    and `eval()`.

    Attributes:
        module: the graph as a module, with parameters and buffers under the model's own names.
        args: the example positional inputs.
        kwargs: the example keyword inputs.
        free_batch: whether the batch size of the inputs may differ from that of the example.
        name: the class name of the captured model.
        remarks: the remarks that capture left.
        stored: reads a tensor of `module` that is on the meta device by its name, see `fp.open_shards`; None where
            nothing has its numbers.
    """

    module: TracedModule
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    free_batch: bool
    name: str
    remarks: tuple[Remark, ...] = ()
    stored: Callable[[str], torch.Tensor] | None = None

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.module.parameters())
        mode = "train" if self.training else "eval"
        return (
            f"Program({self.name}: {size:,} parameters, {len(self.graph.nodes)} nodes, {mode} mode)"
        )

    def _repr_html_(self) -> str:
        """The line of `repr`, and a table of the inputs, for notebooks."""
        names = [n.name for n in self.graph.find_nodes(op="placeholder")]
        rows = [(n, _shown(x)) for n, x in zip(names, self.input_values(), strict=True)]
        table = first_rows(("input", "is"), rows, "inputs") if rows else ""
        remarks = tag("p", f"remarks: {len(self.remarks):,}") if self.remarks else ""
        return join([tag("p", repr(self)), table, remarks])

    @property
    def graph(self) -> fx.Graph:
        """The torch.fx graph of `module`."""
        return self.module.graph

    @property
    def nodes(self) -> Iterator[fx.Node]:
        """The graph's nodes in execution order."""
        return iter(self.module.graph.nodes)

    def input_values(self) -> list[Any]:
        """The inputs as fake tensors, or as values where they are constants."""
        return [n.meta.get("val") for n in self.graph.find_nodes(op="placeholder")]

    @property
    def free_axes(self) -> dict[str, dict[int, FreeAxis]]:
        """The axes of the inputs that may have other lengths than in the example, by input and number."""
        return free_axes(self.graph)

    @property
    def training(self) -> bool:
        """Whether batch norm and dropout are in train mode."""
        return self.module.training

    def train(self, mode: bool = True) -> Program:
        """Switches batch norm and dropout to train mode, in place; returns the program."""
        self.module.train(mode)
        return self

    def eval(self) -> Program:
        """Switches batch norm and dropout to eval mode, in place; returns the program."""
        return self.train(False)

    def with_module(self, module: TracedModule) -> Program:
        """Returns a copy of the program that holds another graph module."""
        return replace(self, module=module)

    def copy(self) -> Program:
        """Returns a program with tensors and a graph of its own; it can be trained without changing this one."""
        tree = torch.nn.Module()
        share_tensors(self.module, tree)
        share_objects(self.module, tree, self.graph)
        own, graph = copy.deepcopy(tree), copy.deepcopy(self.graph)
        return self.with_module(build_module(own, graph, training=self.training))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns every parameter and buffer by name; a shared tensor appears under each of its names."""
        return named_tensors(self.module)

    @property
    def has_numbers(self) -> bool:
        """Whether every parameter and buffer has numbers, in memory or stored."""
        return self.stored is not None or not any(t.is_meta for t in self.tensors().values())

    def loaded(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A parameter or buffer with its numbers: itself, or read anew from where they are stored.

        Args:
            name: of the tensor.
            tensor: as `module` has it.

        Raises:
            LoadError: it cannot be read.
        """
        return self.stored(name) if tensor.is_meta and self.stored else tensor


def _shown(value: Any) -> str:
    """An input in few words; an axis of a free length is a question mark."""
    if not isinstance(value, torch.Tensor):
        return repr(value)[:80]
    sizes = "x".join(str(s) if isinstance(s, int) else "?" for s in value.shape)
    return f"{sizes} {str(value.dtype).removeprefix('torch.')}"


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns every parameter and buffer of a module by name; a shared tensor appears under each of its names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def require_program(value: object) -> Program:
    """Returns the value, which has to be a program.

    Raises:
        OptionError: it is something else, such as the model itself.
    """
    if isinstance(value, Program):
        return value
    raise OptionError(
        f"a program is needed, not a {type(value).__name__}",
        why="a model is captured first, and the result of pruning has one: outcome.program",
        do="program = fp.capture(model, args)",
    )


def module_path(node: fx.Node) -> str:
    """Returns the dotted path of the innermost module whose forward created the node; "" at the root."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values()))[0] if stack else ""


def module_paths(program: Program) -> list[str]:
    """Every module path that holds tensors or made a node."""
    paths = {name.rpartition(".")[0] for name in program.tensors()} | {
        module_path(n) for n in program.nodes
    }
    parents = {p.rsplit(".", i)[0] for p in paths for i in range(p.count(".") + 1)}
    return sorted((paths | parents) - {""})


def module_class(node: fx.Node) -> str:
    """Returns the class name of the innermost module whose forward created the node."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    kind = next(reversed(stack.values()))[1]
    return str(kind).rsplit(".", 1)[-1] if isinstance(kind, str) else str(kind.__name__)


def source_line(node: fx.Node) -> str:
    """Returns `file:line` of the model's own code that created the node, or ""."""
    trace = node.meta.get("stack_trace") or ""
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    frames = [f for f in frames if not f.startswith('File "<')]  # code that torch.fx has written
    own = [f for f in frames if "/torch/nn/" not in f] or frames
    if not own:
        return ""
    path, line = own[-1].split(", ")[:2]
    return f"{path[6:-1]}:{line.removeprefix('line ')}"


def describe(node: fx.Node) -> str:
    """Describes a node for remarks and errors: its name, operator, module path and source line."""
    text = f"node {node.name} = {node.target}"
    if path := module_path(node):
        text += f" in {path} ({module_class(node)})"
    if line := source_line(node):
        text += f" at {line}"
    return text


def build_module(tree: torch.nn.Module, graph: fx.Graph, *, training: bool) -> TracedModule:
    """Builds a `TracedModule` from `graph` with every tensor of `tree`, whether or not the graph uses it."""
    # A graph given to the constructor would have its tensors copied one by one first.
    module = TracedModule(torch.nn.Module(), fx.Graph())
    share_tensors(tree, module)
    share_objects(tree, module, graph)
    check_inputs(graph)
    name_batch_norms(module, graph)
    module.graph = graph
    fx.GraphModule.train(module, training)
    return module


def share_tensors(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Puts every parameter, buffer and leaf module of `source` into `target`, under the same names."""
    target._parameters.clear()
    target._buffers.clear()
    for name, parameter in source._parameters.items():
        target.register_parameter(name, parameter)
    for name, buffer in source._buffers.items():
        kept = name not in source._non_persistent_buffers_set
        target.register_buffer(name, buffer, persistent=kept)
    target._modules.clear()
    for name, child in source._modules.items():
        if isinstance(child, Leaf):
            target._modules[name] = child.clone()
        elif child is not None:
            twin = torch.nn.Module()
            share_tensors(child, twin)
            target._modules[name] = twin


def share_objects(source: torch.nn.Module, target: torch.nn.Module, graph: fx.Graph) -> None:
    """Gives `target` what the graph reads that is no tensor."""
    for node in graph.find_nodes(op="get_attr"):
        _share_other(source, target, str(node.target))


def _share_other(source: torch.nn.Module, target: torch.nn.Module, name: str) -> None:
    """Copies what a get_attr node refers to besides tensors, such as the graph of a branch, to `target`."""
    path, _, leaf = name.rpartition(".")
    value = getattr(source.get_submodule(path), leaf)
    owner = target.get_submodule(path)
    if isinstance(value, fx.GraphModule):
        owner._modules[leaf] = value
    elif not isinstance(value, torch.Tensor):
        setattr(owner, leaf, value)


# A graph as plain data, for pickle


@dataclass(frozen=True)
class _Ref:
    """A reference to the node in a given row."""

    row: int


@dataclass(frozen=True)
class _Operator:
    """A reference to an object in `torch.ops`, which pickle cannot name."""

    name: str


def _rows(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Returns operation, target, arguments, name and lasting metadata of each node, in order."""
    rows: dict[fx.Node, Any] = {node: _Ref(i) for i, node in enumerate(graph.nodes)}
    return [
        (n.op, _target(n), *fx.map_arg((n.args, n.kwargs), rows.__getitem__), n.name, _lasting(n))
        for n in graph.nodes
    ]


def _target(node: fx.Node) -> Any:
    if (operator := overload(node)) is not None:
        return _Operator(str(operator))
    if name := higher_order(node):
        return _Operator(f"higher_order.{name}")
    return node.target


def _lasting(node: fx.Node) -> dict[str, Any]:
    """Returns the metadata that is meaningful in another process, with classes replaced by their names."""
    meta = {key: node.meta[key] for key in (MODE, "stack_trace") if key in node.meta}
    if stack := node.meta.get("nn_module_stack"):
        meta["nn_module_stack"] = {
            key: (path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}")
            for key, (path, kind) in stack.items()
        }
    return meta


def _unpickled(
    tree: torch.nn.Module, rows: Sequence[tuple[Any, ...]], codegen: Any, training: bool
) -> TracedModule:
    graph, nodes = fx.Graph(), list[fx.Node]()
    for op, target, args, kwargs, name, meta in rows:
        if isinstance(target, _Operator):
            target = reduce(getattr, target.name.split("."), torch.ops)
        args, kwargs = fx.node.map_aggregate(
            (args, kwargs), lambda a: nodes[a.row] if isinstance(a, _Ref) else a
        )
        nodes.append(graph.create_node(op, target, args, kwargs, name))
        nodes[-1].meta.update(meta)
    graph.set_codegen(codegen)
    return build_module(tree, graph, training=training)
