"""Parameters and buffers on disk: safetensors for the numbers, and a list of what they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from fxprune.files.document import Entry
from fxprune.io.tensors import Loaded, Stored, is_trainable

Listed = dict[str, Any]


def save_weights(
    module: torch.nn.Module, path: Path, without: Collection[str] = ()
) -> list[Listed]:
    """Writes every tensor once, but for those named; returns a description of each, in the order of the module tree."""
    listed, first = [], dict[int, str]()
    stored = Stored()
    for entry, tensor in _tensors(module):
        name = entry["name"]
        if name in without:
            continue
        if id(tensor) in first:
            entry["same_as"] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            entry["stored"] = stored.add(name, tensor)
        listed.append(entry)
    stored.save(path)
    return listed


def load_weights(listed: Entry, path: Path) -> torch.nn.Module:
    """A tree of plain modules that holds the tensors of a list under their names."""
    tree, stored = torch.nn.Module(), Loaded(path)
    made: dict[str, torch.Tensor] = {}
    for entry in listed.items():
        is_parameter = "requires_grad" in entry.mapping()
        role = "requires_grad" if is_parameter else "persistent"
        source = "same_as" if "same_as" in entry.mapping() else "stored"
        facts = entry.record("name", role, source)
        name, flag = facts["name"].text(), facts[role].flag()
        if name in made:
            entry.fail(f"{name[:80]!r} is listed twice", "list it once")
        if source == "same_as":
            tensor = made.get(facts[source].text())
        else:
            tensor = stored.take(name, facts[source])
            tensor = _parameter(entry, tensor, flag) if is_parameter else tensor
        if tensor is None or isinstance(tensor, torch.nn.Parameter) != is_parameter:
            entry.fail(f"{name[:80]!r} is the same as no tensor before it", "save it again")
        made[name] = tensor
        _put(tree, entry, name, tensor, flag)
    stored.finish()
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


def _parameter(entry: Entry, tensor: torch.Tensor, trained: bool) -> torch.nn.Parameter:
    if trained and not is_trainable(tensor):
        entry.fail(f"is of {tensor.dtype}, which has no gradient", "save it again")
    return torch.nn.Parameter(tensor, requires_grad=trained)


def _put(
    tree: torch.nn.Module, entry: Entry, name: str, tensor: torch.Tensor, persistent: bool
) -> None:
    *path, leaf = name.split(".")
    owner = tree
    try:
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, torch.nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        if isinstance(tensor, torch.nn.Parameter):
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor, persistent=persistent)
    except KeyError as error:
        entry.fail(f"{name[:80]!r} is no name of a tensor: {error}", "save it again")
