"""Puts gates into a graph: on residual branches, on layers, or on the units of groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch
from torch import fx

from fxprune.analysis.axes import Axes
from fxprune.analysis.group import find_groups
from fxprune.graph.editor import Editor
from fxprune.graph.gate import Estimator, Gate, Kind
from fxprune.graph.program import Program, module_path
from fxprune.pipeline import Context, Rewrite
from fxprune.structure.blocks import find_blocks
from fxprune.structure.paths import operator
from fxprune_passes.insert.layer_ends import find_layers
from fxprune_passes.insert.unit_gates import write_unit_gates
from fxprune_passes.insert.unit_places import Places, UnplaceableError, find_places

Scope = Literal["block", "unit", "inner", "head", "layer"]


@dataclass(frozen=True)
class InsertGates(Rewrite):
    """Puts gates of 1 on residual branches, layers, units or heads; the function stays.

    - block: one gate on each residual branch, right before its add.
    - layer: one gate on what each layer inside a residual branch gives, behind its norm and activation.
    - unit: one gate for each unit of a group of channels, wherever an operator sums over them.
    - inner: the same, but not for units of residual streams, those that lie along the sum of a block.
    - head: the same for attention heads.

    Args:
        scope: see above.
        where: glob of the paths of blocks and layers, or of the tensors that name groups.
        kind: see `fxprune.graph.gate.Gate`.
        estimator: see `fxprune.graph.gate.Gate`.
        ignore: globs of the same paths, or of what holds them, that get no gate.
    """

    name: ClassVar[str] = "insert-gates"
    scope: Scope = "block"
    where: str = "*"
    kind: Kind = "hard"
    estimator: Estimator = "straight-through"
    ignore: tuple[str, ...] = ()

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        if self.scope == "block":
            self._blocks(program, editor, ctx)
        elif self.scope == "layer":
            self._layers(program, editor, ctx)
        else:
            self._groups(program, editor, ctx)
        return editor.finish()

    def _blocks(self, program: Program, editor: Editor, ctx: Context) -> None:
        blocks = find_blocks(program)
        for add, value in blocks.left:
            if self._wants(module_path(add)):
                _remark_left(ctx, add, value)
        for block in blocks:
            path = f"{block.path}.gate"
            if not self._wants(block.path):
                continue
            if _is_gate(editor, editor.node(block.branch)):
                ctx.missed(block.branch, "no gate", "the branch has one", code="gated")
            elif ctx.allow(block.branch, f"gate {path}", code="inserted"):
                gate = self._gate(None, program, block.parameters)
                branch, add = editor.node(block.branch), editor.node(block.add)
                path = editor.add_leaf(path, gate)
                add.replace_input_with(
                    branch, editor.call_leaf(path, (branch,), before=add, like=branch)
                )

    def _layers(self, program: Program, editor: Editor, ctx: Context) -> None:
        for layer in find_layers(program):
            if not self._wants(layer.path):
                continue
            if layer.needed:
                ctx.missed(
                    layer.weighted,
                    "no gate",
                    "every path through the network needs this layer: without it the output is constant",
                    code="needed",
                    do="put a shortcut around it first: insert-skips",
                )
            elif ctx.allow(layer.end, f"gate {layer.path}.gate", code="inserted"):
                end = editor.node(layer.end)
                path = editor.add_leaf(
                    f"{layer.path}.gate", self._gate(None, program, (layer.weight,))
                )
                gate = editor.call_leaf(path, (end,), before=end.next, like=end)
                editor.replace(end, gate)

    def _groups(self, program: Program, editor: Editor, ctx: Context) -> None:
        axes = ctx.axes(program)
        heads = head_units(axes)
        streams = stream_units(program, axes) if self.scope == "inner" else set()
        placed: dict[str, Places] = {}
        for group in find_groups(axes):
            tensor, units = group.name.partition(":")[0], set(group.units.tolist())
            is_head = bool(heads & units)
            if is_head != (self.scope == "head") or not self._wants(tensor):
                continue
            if streams & units:
                continue
            try:
                places = find_places(program, axes, group)
            except UnplaceableError as error:
                ctx.missed(group.name, "no gates", str(error), code="no-place")
                continue
            what = f"{len(group)} gates in {len(places.places)} places"
            if ctx.allow(group.name, what, code="inserted"):
                gate = self._gate(len(group), program, [m.param for m in group.members])
                placed[editor.add_leaf(f"{tensor.rpartition('.')[0]}.gate", gate)] = places
        write_unit_gates(editor, placed)

    def _wants(self, path: str) -> bool:
        names = (path, path.rpartition(".")[0])
        ignored = any(fnmatchcase(n, glob) for n in names for glob in self.ignore)
        return fnmatchcase(path, self.where) and not ignored

    def _gate(self, size: int | None, program: Program, names: Iterable[str]) -> Gate:
        tensors = program.tensors()
        like = next((tensors[n] for n in names if tensors[n].is_floating_point()), torch.ones(()))
        exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        return Gate(size, self.kind, self.estimator, like=like.detach().new_empty(0, dtype=exact))


def _remark_left(ctx: Context, add: fx.Node, value: fx.Node) -> None:
    """Says why what looks like a residual branch is none."""
    returned = any(user.op == "output" for user in value.users)
    why = f"its branch computes {value.name}, which " + (
        "the network returns" if returned else "others read"
    )
    do = "capture without that output; use_cache=False for a key-value cache" if returned else ""
    ctx.missed(add, "no gate", why, code="read-outside", do=do)


def _is_gate(editor: Editor, node: fx.Node) -> bool:
    return isinstance(editor.leaf(node), Gate)


def stream_units(program: Program, axes: Axes) -> set[int]:
    """Units of residual streams: those along the sums that close blocks."""
    found: set[int] = set()
    for block in find_blocks(program):
        for label in axes.nodes[block.add]:
            for column in axes.final(label).columns:
                found.update(column.tolist())
    return found - {0}


def head_units(axes: Axes) -> set[int]:
    """Units of heads: what a product of two computed values runs over without summing."""
    found: set[int] = set()
    for node, labels in axes.nodes.items():
        if operator(node) not in ("scaled_dot_product_attention", "matmul", "bmm", "baddbmm"):
            continue
        operands = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if len(operands) < 2 or not isinstance(labels, tuple):
            continue
        for label in labels[:-2]:
            for column in axes.final(label).columns:
                found.update(column.tolist())
    return found - {0}
