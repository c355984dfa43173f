"""Takes the branches that a gate may close out of a graph: each becomes one call, which runs it or leaves it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import getitem
from typing import Any

import torch
from torch import fx

from fxprune.graph.batch_norms import share_of_last
from fxprune.graph.lean.absent import absent
from fxprune.graph.lean.multipliers import (
    Multiplier,
    into_columns,
    into_rows,
    multiply,
    scaled,
)
from fxprune.graph.mode import is_counter
from fxprune.graph.operands import get_argument, is_operator
from fxprune.torch_private import mutated

aten = torch.ops.aten

# Set on nodes that stand for a branch.
_BRANCH = "fxprune_branch"
_PURE = (getitem, share_of_last, into_columns, into_rows, multiply, scaled)
# At 0 or False nothing is drawn.
_OFF = {"p", "dropout_p", "dropout", "train", "training"}


def closable(gate: fx.Node) -> tuple[fx.Node, int] | None:
    """Returns the sum that a gate on a branch ends at, and which of its operands is the other one, shaped like the sum.

    None where the value of the gate is not an operand of such a sum alone.
    """
    if len(gate.users) != 1:
        return None
    (add,) = gate.users
    if add.target is not aten.add.Tensor or add.kwargs or len(add.args) != 2:
        return None
    other = 1 if add.args[0] is gate else 0
    shortcut = add.args[other]
    if not isinstance(shortcut, fx.Node) or shortcut is gate or _kind(add) is None:
        return None
    return (add, other) if _kind(add) == _kind(shortcut) else None


def _kind(node: fx.Node) -> tuple[Any, ...] | None:
    """The shape, type and device of a value; None where they are not known."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return [str(n) for n in value.shape], value.dtype, value.device


class Branches:
    """The branches of a graph whose gates may close.

    Args:
        graph: the graph that changes.
        multipliers: the nodes that read the multipliers of gates; they stay in the graph itself.
    """

    def __init__(self, graph: fx.Graph, multipliers: Iterable[fx.Node]) -> None:
        self._outer = set(multipliers)
        self._norms: dict[str, list[fx.Node]] = {}
        self._counters: dict[str, list[fx.Node]] = {}
        self._writes = False
        for node in graph.nodes:
            if node.target is aten.batch_norm.default and (path := _owner(node)):
                self._norms.setdefault(path, []).append(node)
            elif is_operator(node) and mutated(node.target):
                self._writes |= not is_counter(node)
                if is_counter(node):
                    self._counters.setdefault(_path(node.args[0]), []).append(node)

    def take_out(self, add: fx.Node, other: int, multiplier: fx.Node) -> None:
        """Replaces a sum and all that only its branch needs by one call.

        The graph stays as it is where leaving the branch out would be seen: where it draws random numbers, which the
        next layers would draw in its place, observes, or writes to anything but the statistics of its own batch norms.

        Args:
            add: the sum of the shortcut and the gated branch.
            other: which of its operands stays.
            multiplier: the node that reads the multiplier of the gate.
        """
        shortcut: Any = add.args[other]
        inside = self._only_for(add, shortcut)
        if not inside or not all(_may_be_left_out(n) for n in inside):
            return
        order = sorted({*inside, add})
        read = dict.fromkeys(x for n in order for x in n.all_input_nodes if x not in inside)
        del read[shortcut]
        above = _ancestors(shortcut)
        zeros = [i for i, x in enumerate(read) if x.op == "get_attr" or x not in above]
        run = _leave_out(_function(order, (shortcut, *read)), zeros)
        with add.graph.inserting_before(add):
            call = add.graph.call_function(run, (multiplier, shortcut, *read))
        call.meta.update(add.meta, **{_BRANCH: True})
        add.replace_all_uses_with(call)
        for node in reversed(order):
            add.graph.erase_node(node)

    def _only_for(self, add: fx.Node, shortcut: fx.Node) -> set[fx.Node]:
        """The nodes that only the branch of a sum needs, with the counters of its norms; none if others share these."""
        inside: set[fx.Node] = set()
        todo = add.all_input_nodes
        while todo:
            node = todo.pop()
            outer = (
                node.op in ("get_attr", "placeholder") or node in self._outer or node is shortcut
            )
            if node in inside or outer or not all(u in inside or u is add for u in node.users):
                continue
            inside.add(node)
            todo += node.all_input_nodes
        # What enters a branch is a tensor, not the tuple that it is taken from.
        inside -= {n for n in inside if n.target is getitem and n.args[0] not in inside}
        paths = {_owner(n) for n in inside if n.target is aten.batch_norm.default} - {""}
        if self._writes or any(n not in inside for path in paths for n in self._norms[path]):
            return set()
        return inside.union(*(self._counters.get(path, []) for path in paths))


def _owner(norm: fx.Node) -> str:
    """The path of the module that holds the running mean of a batch norm; "" where there is none."""
    mean = get_argument(norm, "running_mean")
    return _path(mean) if isinstance(mean, fx.Node) else ""


def _path(node: Any) -> str:
    """The path of the module that holds what a chain of additions in place adds to."""
    while node.op == "call_function":
        node = node.args[0]
    return str(node.target).rpartition(".")[0]


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """A node and all that it depends on."""
    found: set[fx.Node] = set()
    todo = [node]
    while todo:
        if (one := todo.pop()) not in found:
            found.add(one)
            todo += one.all_input_nodes
    return found


def _may_be_left_out(node: fx.Node) -> bool:
    """Returns whether nothing but its readers sees that a node does not run."""
    if node.meta.get(_BRANCH) or node.target in _PURE:
        return True
    if not is_operator(node):
        return False
    return not _draws(node) and (not mutated(node.target) or is_counter(node))


def _draws(node: fx.Node) -> bool:
    """Returns whether an operator takes from the stream of random numbers."""
    operator: Any = node.target
    if torch.Tag.nondeterministic_seeded not in operator.tags:
        return False
    names = {a.name for a in operator._schema.arguments}
    return all(get_argument(node, name) for name in names & _OFF)


def _leave_out(run: Callable[..., Any], zeros: list[int]) -> Callable[..., Any]:
    """Returns a function that runs a branch unless its multiplier is 0.

    Args:
        run: computes the sum from the shortcut and the other inputs.
        zeros: which of the other inputs get gradients of 0 if it does not run; the others have some by the shortcut.
    """

    def branch(m: Multiplier, shortcut: torch.Tensor, *inputs: Any) -> Any:
        if isinstance(m, float) and m == 0:
            return absent(shortcut, [inputs[i] for i in zeros])
        return run(shortcut, *inputs)

    return branch


def _function(nodes: list[fx.Node], inputs: Iterable[fx.Node]) -> Callable[..., Any]:
    """Returns a function of the inputs that computes the last of some nodes."""
    graph = fx.Graph()
    known = {x: graph.placeholder(x.name) for x in inputs}
    for node in nodes:
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output(known[nodes[-1]])
    module = fx.GraphModule(torch.nn.Module(), fx.Graph())
    module.graph = graph
    forward: Callable[..., Any] = module.forward
    return forward
