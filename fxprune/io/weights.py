"""Parameters and buffers on disk: safetensors for the numbers, and a list of what they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fxprune.shrink.tensors import memory_format

Listed = dict[str, Any]


def save_weights(module: torch.nn.Module, path: Path) -> list[Listed]:
    """Writes every tensor once; returns a description of each, in the order of the module tree."""
    listed, first = [], dict[int, str]()
    stored: dict[str, torch.Tensor] = {}
    for entry, tensor in _tensors(module):
        name = entry["name"]
        if id(tensor) in first:
            entry["same_as"] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            stored[name] = _own(tensor)
            entry["layout"] = str(memory_format(tensor)).removeprefix("torch.")
        listed.append(entry)
    save_file(stored, path)
    return listed


def load_weights(listed: Sequence[Mapping[str, Any]], path: Path) -> torch.nn.Module:
    """Returns a tree of plain modules that holds the listed tensors under their names."""
    tree, stored = torch.nn.Module(), load_file(path)
    made: dict[str, torch.Tensor] = {}
    for entry in listed:
        name = entry["name"]
        tensor = made[entry["same_as"]] if "same_as" in entry else _restored(entry, stored[name])
        made[name] = tensor
        owner, leaf = _owner(tree, name)
        if isinstance(tensor, torch.nn.Parameter):
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor, persistent=entry["persistent"])
    return tree


def _tensors(module: torch.nn.Module) -> Iterator[tuple[Listed, torch.Tensor]]:
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                grad = parameter.requires_grad
                yield {"name": prefix + name, "requires_grad": grad}, parameter
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                kept = name not in owner._non_persistent_buffers_set
                yield {"name": prefix + name, "persistent": kept}, buffer


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor in memory of its own, as safetensors requires."""
    out = tensor.detach().cpu().contiguous()
    return out.clone() if out.untyped_storage().nbytes() != out.nbytes else out


def _restored(entry: Mapping[str, Any], tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.contiguous(memory_format=getattr(torch, entry["layout"]))
    if "requires_grad" in entry:
        return torch.nn.Parameter(tensor, requires_grad=entry["requires_grad"])
    return tensor


def _owner(tree: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    *path, leaf = name.split(".")
    for part in path:
        if part not in tree._modules:
            tree.add_module(part, torch.nn.Module())
        tree = tree._modules[part]  # type: ignore[assignment]
    return tree, leaf
