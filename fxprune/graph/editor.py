"""Edits a copy of a program: its nodes, tensors and leaf modules. The program itself does not change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count
from typing import Any, cast

import torch
from torch import fx, nn

from fxprune.graph.leaf import Leaf, leaf_of
from fxprune.graph.operands import get_argument, is_operator
from fxprune.graph.program import Program, build_module, share_objects, share_tensors
from fxprune.torch_private import fake_mode_of, fake_result

_STATISTICS = {"batch_norm": "training", "instance_norm": "use_input_stats"}
_ORIGIN = ("nn_module_stack", "stack_trace", "source_fn_stack")


class Editor:
    """A copy of a program's graph that can be edited; tensors are shared with the program until replaced.

    Attributes:
        graph: the copy; edit it with the methods of this class or with those of torch.fx.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.graph = copy.deepcopy(program.graph)
        self._tree = nn.Module()
        share_tensors(program.module, self._tree)
        share_objects(program.module, self._tree, self.graph)
        self._unread = {n.name for n in self.graph.nodes if not n.users}
        self._used = _references(self.graph)
        self._before = _spelling(self.graph)
        self._by_name: dict[str, fx.Node] = {n.name: n for n in self.graph.nodes}
        self._mode = fake_mode_of([n.meta.get("val") for n in self.graph.nodes])
        self._replaced = False

    @property
    def nodes(self) -> Iterator[fx.Node]:
        """Yields the nodes of the copy in execution order; nodes may be erased during the iteration."""
        return iter(list(self.graph.nodes))

    def node(self, original: fx.Node | str) -> fx.Node:
        """Returns the copy of a node of the program, given the node itself or its name."""
        return self._by_name[original if isinstance(original, str) else original.name]

    def tensor(self, name: str) -> torch.Tensor:
        """Returns a parameter or buffer in its current state."""
        path, _, leaf = name.rpartition(".")
        owner = self._tree.get_submodule(path)
        found = owner._buffers.get(leaf, owner._parameters.get(leaf))
        if found is None:
            raise KeyError(name)
        return found

    def leaf(self, node: fx.Node) -> Leaf | None:
        """Returns the leaf module that a node calls, or None."""
        return leaf_of(self._tree, node)

    def call(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        *,
        before: fx.Node,
        like: fx.Node | None = None,
    ) -> fx.Node:
        """Inserts a call of a function before a node.

        The example value of the new node is inferred; its module path and source line are those of
        `like`, by default of `before`.
        """
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, dict(kwargs or {}))
        self._describe(node, like or before)
        node.meta["val"] = fake_result(target, args, kwargs or {})
        return node

    def call_leaf(
        self, path: str, args: tuple[Any, ...], *, before: fx.Node, like: fx.Node | None = None
    ) -> fx.Node:
        """Inserts a call of a leaf module whose output has the shape and type of its first argument."""
        with self.graph.inserting_before(before):
            node = self.graph.create_node("call_module", path, args)
        self._describe(node, like or before)
        node.meta["val"] = args[0].meta["val"]
        return node

    def add_leaf(self, path: str, module: Leaf) -> str:
        """Adds a leaf module under a path, with a number appended if the path is taken; returns the path."""
        parent, _, name = path.rpartition(".")
        owner = self._grow(parent)
        taken = {**owner._modules, **owner._parameters, **owner._buffers}
        names = chain((name,), (f"{name}{i}" for i in count(2)))
        free = next(n for n in names if n not in taken)
        owner._modules[free] = module
        self._replaced = True
        return f"{parent}.{free}" if parent else free

    def add_tensor(self, name: str, tensor: torch.Tensor, *, before: fx.Node) -> fx.Node:
        """Adds a parameter or buffer under a new name; returns the node that reads it."""
        path, _, leaf = name.rpartition(".")
        owner = self._grow(path)
        owner._parameters.pop(leaf, None)  # what a layer without a bias registers is None
        if isinstance(tensor, nn.Parameter):
            owner._parameters[leaf] = tensor
        else:
            owner.register_buffer(leaf, tensor)
        return self.read_tensor(name, before=before)

    def free_name(self, wanted: str) -> str:
        """Returns an unused name for a tensor: `wanted`, with a number appended if it is taken."""
        path = wanted.rpartition(".")[0]
        owner: nn.Module | None = self._tree
        for part in path.split(".") if path else ():
            owner = owner._modules.get(part) if owner is not None else None
        names = (wanted if i == 0 else f"{wanted}_{i}" for i in count())
        return next(n for n in names if getattr(owner, n.rpartition(".")[2], None) is None)

    def keep(self, node: fx.Node) -> None:
        """Keeps a node in the graph even if nothing reads it any more."""
        self._unread.add(node.name)

    def drop_tensor(self, name: str) -> None:
        """Marks a parameter or buffer that no node has ever read for removal when the edit ends."""
        self._used.add(name)

    def read_tensor(self, name: str, *, before: fx.Node) -> fx.Node:
        """Inserts a get_attr node that reads a parameter or buffer."""
        with self.graph.inserting_before(before):
            node = self.graph.create_node("get_attr", name)
        self._describe(node, before)
        node.meta["val"] = self._fake(self.tensor(name))
        return node

    def set_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Replaces a parameter or buffer by a tensor of any shape, and updates every node that reads it.

        A parameter stays a parameter and keeps its `requires_grad`.
        """
        path, _, leaf = name.rpartition(".")
        owner = self._tree.get_submodule(path)
        old = self.tensor(name)
        if isinstance(old, nn.Parameter):
            owner._parameters[leaf] = nn.Parameter(tensor.detach(), old.requires_grad)
        else:
            owner._buffers[leaf] = tensor.detach()
        for node in self.graph.find_nodes(op="get_attr"):
            if node.target == name:
                node.meta["val"] = self._fake(tensor)
        self._replaced = True

    def retype(self, node: fx.Node) -> None:
        """Infers the example value of a call of a function again, after its arguments have changed."""
        node.meta["val"] = fake_result(cast(Any, node.target), node.args, node.kwargs)

    def replace(self, node: fx.Node, value: fx.Node) -> None:
        """Makes every reader of a node read another node; the old one is removed if nothing needs it."""
        node.replace_all_uses_with(value, delete_user_cb=lambda user: user is not value)

    def finish(self) -> Program:
        """Removes dead nodes and tensors and returns the edited program, or the original if nothing changed.

        A norm whose output is no longer read is removed even though it updates running statistics in
        train mode. Tensors that only dead nodes read are removed too; tensors that no node has ever
        read stay.
        """
        self._sweep()
        if not self._replaced and _spelling(self.graph) == self._before:
            return self._program
        self._drop_tensors(self._used - _references(self.graph))
        self.graph.lint()
        module = build_module(self._tree, self.graph, training=self._program.training)
        return self._program.with_module(module)

    def _sweep(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            idle = node.name not in self._unread and not node.users
            if idle and (is_dead(node) or gathers_statistics(node)):
                self.graph.erase_node(node)
        counters = {_counter_of(name) for name in self._used - _references(self.graph)} - {""}
        for node in self.graph.find_nodes(op="get_attr"):
            if node.target in counters:
                for step in [u for u in node.users if not u.users]:
                    self.graph.erase_node(step)
                if not node.users:
                    self.graph.erase_node(node)

    def _drop_tensors(self, names: set[str]) -> None:
        counters = {_counter_of(name) for name in names} - {""}
        for name in names | (counters - _references(self.graph)):
            path, _, leaf = name.rpartition(".")
            owner = self._tree.get_submodule(path)
            for store in (owner._parameters, owner._buffers, owner._modules):
                store.pop(leaf, None)

    def _describe(self, node: fx.Node, like: fx.Node) -> None:
        node.meta.update({k: like.meta[k] for k in _ORIGIN if k in like.meta})

    def _grow(self, path: str) -> nn.Module:
        owner = self._tree
        for part in path.split(".") if path else ():
            if part not in owner._modules:
                owner._modules[part] = nn.Module()
            owner = owner._modules[part]  # type: ignore[assignment]
        return owner

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._mode is None:
            return tensor
        return self._mode.from_tensor(tensor, static_shapes=True)


def is_dead(node: fx.Node) -> bool:
    """Returns whether nothing reads a node and running it has no side effect."""
    if node.users or node.op in ("placeholder", "output"):
        return False
    if node.op != "call_function":
        return True
    return not node.is_impure(impure_random=False) and not gathers_statistics(node)


def gathers_statistics(node: fx.Node) -> bool:
    """Returns whether a call updates running statistics, which the schema of a batch norm does not declare."""
    flag = _STATISTICS.get(node.target._opname) if is_operator(node) else None  # type: ignore[union-attr]
    return bool(flag and get_argument(node, "running_mean") and get_argument(node, flag))


def _counter_of(name: str) -> str:
    """Returns the counter that belongs to the running mean of a batch norm, or "" for any other tensor."""
    path, _, leaf = name.rpartition(".")
    return f"{path}.num_batches_tracked".lstrip(".") if leaf == "running_mean" else ""


def _references(graph: fx.Graph) -> set[str]:
    return {str(n.target) for n in graph.nodes if n.op in ("get_attr", "call_module")}


def _spelling(graph: fx.Graph) -> list[Any]:
    """Returns the graph as plain data; equal data means the same calls in the same order."""
    return [
        (n.op, str(n.target), str(fx.map_arg(n.args, str)), str(fx.map_arg(n.kwargs, str)), n.name)
        for n in graph.nodes
    ]
