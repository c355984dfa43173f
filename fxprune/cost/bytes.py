"""The memory of parameters and buffers."""

from __future__ import annotations

import torch

from fxprune.analysis.axes import Axes
from fxprune.cost.terms import Term, tensor_term
from fxprune.graph.program import Program


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Returns the size of a tensor's elements in bytes."""
    return tensor.numel() * tensor.element_size()


def byte_terms(program: Program, axes: Axes) -> list[Term]:
    """Returns the bytes of each parameter and buffer as cost terms; a shared tensor counts once."""
    stored = [*program.module.named_parameters(), *program.module.named_buffers()]
    return [tensor_term(name, t, axes, t.element_size()) for name, t in stored]
