"""A program whose weights stay on disk: each tensor is read where the network needs it, and let go again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.utils import _pytree as pytree

from fxprune.errors import LoadError, OptionError, some
from fxprune.graph.program import Program, named_tensors, require_program
from fxprune.io.directory import told
from fxprune.process.state import plain_modes
from fxprune.shards.checkpoint import read_checkpoint
from fxprune.shards.names import find_names


@plain_modes()
def open_shards(
    program: Program,
    source: str | os.PathLike[str],
    *,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> Program:
    """Returns the program with its weights on the meta device to be read from a checkpoint, tensor by tensor.

    Criteria that go forward only (`wanda`, `activation`, and those of weights), block influence, sensitivity and
    verification run such a program node by node. A tensor is read when a node needs it and let go behind it, and so is
    every activation: in memory are the weights of a node and the values that are still to be read, of one batch.
    Gradients and training need the weights in memory.

    Args:
        program: of a model on the meta device. Tensors with numbers keep them.
        source: a folder of safetensors files, as for `fp.apply_to_shards`; it is only read.
        tensors: those that the checkpoint does not have, by name, such as the frequencies of rotary positions; see
            `fp.without_weights`. Names that the program does not have are passed over.

    Raises:
        LoadError: the checkpoint is damaged or quantised, or has other shapes.
        PlanError: the checkpoint lacks tensors of the program.
        OptionError: `tensors` has one of another shape, or one that the program has numbers for.
    """
    require_program(program)
    checkpoint = read_checkpoint(Path(source))
    empty = {n: t for n, t in named_tensors(program.module).items() if t.is_meta}
    held = program.tensors()
    given = {n: t for n, t in (tensors or {}).items() if n in held}
    if odd := [n for n, t in given.items() if n not in empty or t.shape != empty[n].shape]:
        raise OptionError(
            f"the program has no such tensors on the meta device: {some(odd)}",
            where="tensors=",
            do="give tensors of the shapes and names of the program: program.tensors()",
        )
    names: dict[int, list[str]] = {}
    for name, tensor in empty.items():
        if name not in given:
            names.setdefault(id(tensor), []).append(name)
    files = {t.name: (shard.path, t.shape) for shard in checkpoint.shards for t in shard.tensors}
    own = find_names(list(files), list(names.values()), str(source), of="the program")
    stored = {mine: name for name, mine in own.items() if mine is not None}
    places: dict[str, tuple[str, Path, tuple[int, ...]]] = {}
    for tied in names.values():
        first = next(stored[n] for n in tied if n in stored)
        places |= dict.fromkeys(tied, (first, *files[first]))
    if odd := [n for n, (_, _, shape) in places.items() if shape != tuple(empty[n].shape)]:
        raise LoadError(
            "the checkpoint is of another model",
            where=str(source),
            why=f"the shapes of {some(odd)} differ",
            do="build the model from the config of the checkpoint",
        )
    args, kwargs = pytree.tree_map_only(torch.Tensor, _with_numbers, (program.args, program.kwargs))
    reader = _Reader(
        {name: (first, path) for name, (first, path, _) in places.items()},
        given,
        {n: t.dtype for n, t in empty.items()},
    )
    return replace(program, args=args, kwargs=kwargs, stored=reader)


def _with_numbers(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else x


@dataclass(frozen=True)
class _Reader:
    """Reads tensors from the files of a checkpoint.

    Attributes:
        places: name in the program -> name in the checkpoint, and its file.
        given: tensors that are in no file.
        types: of the tensors in the program.
    """

    places: Mapping[str, tuple[str, Path]]
    given: Mapping[str, torch.Tensor]
    types: Mapping[str, torch.dtype]

    def __call__(self, name: str) -> torch.Tensor:
        if name in self.given:
            return self.given[name].detach().to(self.types[name], copy=True)
        if name not in self.places:
            raise LoadError(
                f"the checkpoint has no tensor for {name}",
                why="it has no numbers, and came into the program behind fp.open_shards",
                do="open the shards of the program that computes with it, or load the weights",
            )
        stored, path = self.places[name]
        with told(path, "read"), safe_open(path, "pt") as file:
            found: Any = file.get_tensor(stored)
        return torch.as_tensor(found).to(self.types[name])
