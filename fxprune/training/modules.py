"""Modules of a program's graph: with tensors of their own, and without norms that nobody reads."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import fx, nn

from fxprune.editor import Editor, gathers_statistics
from fxprune.operands import get_argument
from fxprune.program import Program, TracedModule, build_module, share_tensors

Tensor = torch.Tensor
COUNTER = "num_batches_tracked"


def twin(program: Program, tensors: Mapping[str, Tensor], *, training: bool) -> TracedModule:
    """A module of a copy of the program's graph that holds these tensors, and no others."""
    tree = nn.Module()
    share_tensors(program.module, tree)
    for path, owner in tree.named_modules(remove_duplicate=False):
        for store in (owner._parameters, owner._buffers):
            for name in [n for n, t in store.items() if t is not None]:
                full = f"{path}.{name}" if path else name
                if full in tensors:
                    store[name] = tensors[full]
                else:
                    del store[name]
    for node in program.graph.find_nodes(op="get_attr"):
        path, _, leaf = str(node.target).rpartition(".")
        value = getattr(program.module.get_submodule(path), leaf)
        if not isinstance(value, Tensor):  # the graph of a branch, an object
            setattr(tree.get_submodule(path), leaf, value)
    module = build_module(tree, copy.deepcopy(program.graph), training=program.training)
    return module.train(training)


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer; one of two names stands under both."""
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]


def sweep(before: Program, after: Program) -> Program:
    """The program without the norms that a rewrite left unread, and without what only fed them.

    In train mode a batch norm gathers statistics, so that a rewrite leaves it where it is. Behind a
    branch that is gone these are statistics for nobody, at the full price of the branch.

    Args:
        before: the program that was rewritten; a norm that nothing read there stays.
        after: what the rewrite made.
    """
    read = {node.name for node in before.nodes if node.users}
    while True:
        editor = Editor(after)
        idle = [n for n in editor.nodes if _is_idle(n) and n.name in read]
        if not idle:
            return _without_orphans(before, after)
        for norm in idle:
            _erase(editor, norm)
        after = editor.finish()


def _is_idle(node: fx.Node) -> bool:
    return not node.users and gathers_statistics(node)


def _erase(editor: Editor, norm: fx.Node) -> None:
    """Erases a norm, and its counter where no other norm has the same statistics."""
    mean = get_argument(norm, "running_mean")
    editor.graph.erase_node(norm)
    if any(gathers_statistics(user) for user in mean.users):
        return
    counter = _counter(str(mean.target))
    for source in [n for n in editor.graph.find_nodes(op="get_attr") if n.target == counter]:
        for step in [u for u in source.users if not u.users]:
            editor.graph.erase_node(step)


def _counter(mean: str) -> str:
    return f"{mean.rpartition('.')[0]}.{COUNTER}".lstrip(".")


def _without_orphans(before: Program, after: Program) -> Program:
    """The program without the counters of norms that are gone; in eval mode no node reads them."""
    left = after.tensors()
    gone = {
        _counter(name)
        for name in before.tensors()
        if name.rpartition(".")[2] == "running_mean" and name not in left
    }
    if not gone & left.keys():
        return after
    kept = {name: tensor for name, tensor in left.items() if name not in gone}
    return after.with_module(twin(after, kept, training=after.training))
