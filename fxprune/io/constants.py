"""Tensors of a model that are neither parameters nor buffers, on disk, where its class builds others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.files.document import Entry
from fxprune.io.tensors import Loaded, Stored
from fxprune.io.values import Place, constants, values_of


def changed_constants(fresh: nn.Module, model: nn.Module) -> dict[Place, torch.Tensor]:
    """The tensors in attributes of `model` that differ from those in what its class builds, such as a cache."""
    after = values_of(model)
    return {
        place: new
        for place, old in constants(fresh).items()
        if isinstance(new := after.get(place), torch.Tensor) and not _same(old, new)
    }


def save_constants(tensors: Mapping[Place, torch.Tensor], path: Path) -> list[dict[str, Any]]:
    """Writes the tensors; returns where each belongs.

    Raises:
        LoadError: one is more than numbers.
    """
    stored, rows = Stored(), []
    for number, (place, tensor) in enumerate(tensors.items()):
        facts = stored.add(str(number), tensor)
        rows.append({"module": place.path, "trail": list(place.trail), "stored": facts})
    stored.save(path)
    return rows


def load_constants(model: nn.Module, rows: Entry, path: Path) -> None:
    """Puts tensors that `save_constants` wrote where the model has others."""
    stored = Loaded(path)
    for number, row in enumerate(rows.items()):
        facts = row.record("module", "trail", "stored")
        trail = tuple(e.value for e in facts["trail"].items())
        if not trail or not all(type(t) in (str, int) for t in trail):
            facts["trail"].fail("is no way to a value", "save it again")
        place, found = Place(facts["module"].text(), trail), constants(model)
        if place not in found:
            row.fail(f"there is no tensor {str(place)[:80]}", "build the model as it was before")
        place.put(model, _of_kind(stored.take(str(number), facts["stored"]), found[place]))
    stored.finish()


def _of_kind(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.is_meta:
        return False
    b = b.detach().to(a.device)
    return bool(((a == b) | ((a != a) & (b != b))).all())
