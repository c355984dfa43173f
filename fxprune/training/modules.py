"""Modules that run a program's graph with tensors of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from fxprune.graph.program import Program, TracedModule, build_module, share_tensors

Tensor = torch.Tensor


def twin(program: Program, tensors: Mapping[str, Tensor], *, training: bool) -> TracedModule:
    """Returns a module with a copy of the program's graph that holds exactly these tensors."""
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
    """Returns every parameter and buffer with its name; a shared tensor appears under each of its names."""
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
