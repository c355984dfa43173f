"""Example inputs on disk: tensors in a safetensors file, structure and plain values as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.files.document import Entry
from fxprune.io.nesting import read_nesting, write_nesting
from fxprune.io.plain import Reader, Writer
from fxprune.io.tensors import Loaded, Stored, is_trainable


def save_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Writes the tensors, each once; returns the rest.

    Raises:
        LoadError: an input is neither a tensor nor a plain value, or of a class that is not registered.
    """
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    stored, numbers = Stored(), dict[int, Any]()

    def write(x: torch.Tensor) -> Any:
        if id(x) not in numbers:
            name = str(len(numbers))
            facts = {"stored": stored.add(name, x), "grad": x.requires_grad}
            numbers[id(x)] = {"name": name, **facts}
        return numbers[id(x)]

    writer = Writer({"tensor": (torch.Tensor, write)})
    rows = [writer.write(x, f"input {i}") for i, x in enumerate(leaves)]
    stored.save(path)
    return {"nested": write_nesting(spec, "inputs"), "values": rows}


def load_inputs(entry: Entry, path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword inputs that `save_inputs` wrote, on the CPU."""
    facts, stored = entry.record("nested", "values"), Loaded(path)
    made: dict[str, torch.Tensor] = {}

    def read(row: Entry) -> torch.Tensor:
        known = row.record("name", "stored", "grad")
        name = known["name"].text()
        if name not in made:
            made[name] = stored.take(name, known["stored"])
            made[name].requires_grad_(known["grad"].flag() and is_trainable(made[name]))
        return made[name]

    reader = Reader({"tensor": read})
    values = [reader.read(e) for e in facts["values"].items()]
    stored.finish()
    spec = read_nesting(facts["nested"])
    if spec.num_leaves != len(values):
        entry.fail("do not fit how they are nested", "save it again")
    found = pytree.tree_unflatten(values, spec)
    if not isinstance(found, tuple) or list(map(type, found)) != [tuple, dict]:
        entry.fail("are no positional and keyword inputs", "save it again")
    return found[0], found[1]
