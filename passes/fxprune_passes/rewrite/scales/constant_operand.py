"""Reads an arithmetic operation with a constant operand as a scale and a shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxprune.graph.editor import Editor
from fxprune.graph.operands import get_argument
from fxprune.structure.paths import operator
from fxprune.torch_private import aliased, overload
from fxprune_passes.rewrite.effects.memory import Memory
from fxprune_passes.rewrite.moves.moved_vector import Vector

Tensor = torch.Tensor


@dataclass(frozen=True)
class Scaling:
    """A node that computes `scale * source + shift`; both broadcast against the source, in float64."""

    source: fx.Node
    scale: Tensor
    shift: Tensor | None

    def vector(self) -> Vector | None:
        """The axis along which the scale and the shift vary; None where they vary along several axes."""
        rank = self.source.meta["val"].dim()
        tensors = [t for t in (self.scale, self.shift) if t is not None]
        lengths = {rank - t.dim() + i: n for t in tensors for i, n in enumerate(t.shape) if n != 1}
        if len(lengths) > 1:
            return None
        return Vector.along(*lengths.popitem()) if lengths else Vector.of_one()


def read_scaling(editor: Editor, memory: Memory, node: fx.Node) -> Scaling | None:
    """Reads a node as a scaling of a value of the same shape and dtype; None where it is none."""
    name = operator(node)
    if name not in ("mul", "div", "add", "sub", "rsub") or len(node.args) < 2:
        return None
    constants = [_constant(editor, memory, a) for a in node.args[:2]]
    if sum(c is None for c in constants) != 1:
        return None
    place = 0 if constants[0] is None else 1
    source, constant = node.args[place], constants[1 - place]
    if not isinstance(source, fx.Node) or constant is None or not _alike(source, node):
        return None
    return _scaling(name, node, source, constant, first=place == 0)


def _scaling(
    name: str, node: fx.Node, source: fx.Node, constant: Tensor, *, first: bool
) -> Scaling | None:
    one = constant.new_ones(())
    if name == "mul":
        return Scaling(source, constant, None)
    if name == "div":
        whole = "rounding_mode" in node.kwargs and node.kwargs["rounding_mode"] is not None
        return None if whole or not first else Scaling(source, 1 / constant, None)
    if name == "rsub":
        return Scaling(source, -get_argument(node, "alpha") * one, constant) if first else None
    sign = (1 if name == "add" else -1) * get_argument(node, "alpha")
    if first:
        return Scaling(source, one, sign * constant)
    return Scaling(source, sign * one, constant)


def _alike(source: fx.Node, node: fx.Node) -> bool:
    a, b = source.meta["val"], node.meta["val"]
    if not isinstance(a, torch.Tensor) or not a.is_floating_point():
        return False
    return bool(a.dtype == b.dtype and a.shape == b.shape)


def _constant(editor: Editor, memory: Memory, value: Any) -> Tensor | None:
    """The value of a number, a stored tensor or a view of one in float64; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    found = _stored(editor, memory, value) if isinstance(value, fx.Node) else None
    return found.detach().double() if found is not None and not found.is_complex() else None


def _stored(editor: Editor, memory: Memory, node: fx.Node) -> Tensor | None:
    if node.op == "get_attr":
        stored = isinstance(node.meta.get("val"), torch.Tensor)
        known = stored and node in memory.roots and not memory.is_written(node)
        return editor.tensor(str(node.target)) if known else None
    op = overload(node)
    if op is None or not aliased(op) or len(node.all_input_nodes) != 1:
        return None
    source = _stored(editor, memory, node.all_input_nodes[0])
    if source is None:
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: source)
    with torch.no_grad():
        found = op(*args, **kwargs)
    return found if isinstance(found, torch.Tensor) else None
