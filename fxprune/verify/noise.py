"""Noise on tensors of one repeated value, which would hide errors.

A fresh batch norm multiplies by 1 and adds 0, and a head of zeros returns zeros whatever it is given: what a
rewrite does wrong to them shows only once their numbers differ.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

import torch

from fxprune.graph.editor import Editor
from fxprune.graph.leaf import is_inside_leaf
from fxprune.graph.program import Program

Tensor = torch.Tensor
_LOOK = 1024  # numbers that are looked at first: those of most tensors differ there
GAIN = 1.5  # by which a layer with enlarged weights multiplies what it is given


def noise_of(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The noise to add to each tensor of one repeated value: float64 numbers between 0.1 and 1.1.

    They depend on the tensor's first name and the seed; the names of a tied tensor share one noise.
    """
    first: dict[int, str] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        known = first.setdefault(id(tensor), name)
        if known != name:
            if known in found:
                found[name] = found[known]
        elif tensor.is_floating_point() and _is_constant(tensor):
            rng = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
            found[name] = 0.1 + torch.rand(tensor.shape, generator=rng, dtype=torch.float64)
    return found


def noisy(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Noisy copies of the tensors of one repeated value; the names of a tied tensor share one copy."""
    return _added(tensors, noise_of(tensors, seed))


def _added(tensors: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
    copies = {id(x): tensors[name].detach() + x.to(tensors[name]) for name, x in noise.items()}
    return {name: copies[id(x)] for name, x in noise.items()}


def lively(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors with every small weight enlarged, so that no layer and no attention is next to nothing.

    Fresh networks of transformers, with weights of 0.02, return nearly the same whatever their attention does. Names
    of a tied tensor share one copy.
    """
    copies = {id(x): _enlarged(x) for x in tensors.values()}
    return {name: copies[id(x)] for name, x in tensors.items()}


def _enlarged(tensor: Tensor) -> Tensor:
    value = tensor.detach()
    if not value.is_floating_point() or value.dim() < 2 or value.numel() < 2 or value.is_meta:
        return value
    size = float(value.double().pow(2).mean()) ** 0.5 * (value.numel() / len(value)) ** 0.5
    return value * (GAIN / size) if 0 < size < GAIN else value


def outside_leaves(program: Program) -> dict[str, Tensor]:
    """The tensors of a program but for those of its gates and observers."""
    return {
        name: tensor
        for name, tensor in program.tensors().items()
        if not is_inside_leaf(program.module, name)
    }


def numbers_of(program: Program) -> dict[str, Tensor]:
    """The same, with the vectors among stored tensors read: scales and shifts are what repeats one value."""
    return {
        name: program.loaded(name, tensor) if tensor.dim() < 2 else tensor
        for name, tensor in outside_leaves(program).items()
    }


def randomised(
    program: Program, seed: int = 0, noise: Mapping[str, Tensor] | None = None
) -> Program:
    """The program with noise on every tensor of one repeated value; the program itself if it has none.

    Gates and other leaf modules stay as they are.

    Args:
        program: the program; it stays as it is.
        seed: of the noise.
        noise: what to add to which tensors instead, from `noise_of`.
    """
    found = _added(outside_leaves(program), noise) if noise else {}
    found = noisy(outside_leaves(program), seed) if noise is None else found
    if not found:
        return program
    editor = Editor(program)
    for name, tensor in found.items():
        editor.set_tensor(name, tensor)
    return replace(editor.finish(), remarks=())


def _is_constant(tensor: Tensor) -> bool:
    """Whether a tensor holds several numbers, all equal."""
    values = tensor.detach().reshape(-1)
    if len(values) < 2 or tensor.is_meta or bool(values[0] != values[-1]):
        return False  # as nearly every weight: the others need no look
    return bool((values[:_LOOK] == values[:1]).all()) and bool((values == values[:1]).all())
