"""Inserts gates on residual branches, on layers, or on the units of dependency groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch
from torch import fx

from fxprune.analysis.group import find_groups
from fxprune.graph.editor import Editor
from fxprune.graph.gate import Estimator, Gate, Kind
from fxprune.graph.program import Program, describe, module_path
from fxprune.pipeline import Context, Rewrite
from fxprune.structure.blocks import find_blocks
from fxprune_passes.insert.places.heads_and_streams import head_units, stream_units
from fxprune_passes.insert.places.layer_ends import find_layers
from fxprune_passes.insert.places.unit_gates import write_unit_gates
from fxprune_passes.insert.places.unit_places import (
    Places,
    UnplaceableError,
    find_places,
    norms_over,
)

Scope = Literal["block", "unit", "inner", "head", "layer"]


@dataclass(frozen=True)
class InsertGates(Rewrite):
    """Inserts gates with value 1 on residual branches, layers, units or heads; the function stays the same.

    - block: one gate on each residual branch, right before the addition that ends it.
    - layer: one gate on the output of each layer inside a residual branch, after its normalization and activation.
    - unit: one gate for each unit of a dependency group of channels, wherever an operator sums over them.
    - inner: as unit, but without the units of residual streams, which lie along the sum of a residual block.
    - head: as unit, for attention heads.

    Args:
        scope: see above.
        where: glob of the paths of blocks and layers, or of the tensors that name dependency groups.
        kind: see `fxprune.graph.gate.Gate`.
        estimator: see `fxprune.graph.gate.Gate`.
        ignore: globs of the same paths, or of their parent modules, that get no gate.
        exact: whether units get gates only where a gate at 0 is the same as no unit; else units over which a
            norm has taken statistics get gates behind it, too.
    """

    name: ClassVar[str] = "insert-gates"
    scope: Scope = "block"
    where: str = "*"
    kind: Kind = "hard"
    estimator: Estimator = "straight-through"
    ignore: tuple[str, ...] = ()
    exact: bool = True

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
                ctx.missed(
                    block.branch, "no gate inserted", "the branch already has a gate", code="gated"
                )
            elif ctx.allow(block.branch, f"inserted gate {path}", code="inserted"):
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
                    "no gate inserted",
                    "every path through the network needs this layer: without it the output is constant",
                    code="needed",
                    do="run insert-skips first to put a shortcut around it",
                )
            elif ctx.allow(layer.end, f"inserted gate {layer.path}.gate", code="inserted"):
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
            if streams & units or self._misses(ctx, group.name, norms_over(axes, group)):
                continue
            try:
                places = find_places(program, axes, group)
            except UnplaceableError as error:
                ctx.missed(group.name, "no gates inserted", str(error), code="no-place")
                continue
            what = f"inserted {len(group)} gates in {len(places.places)} places"
            if ctx.allow(group.name, what, code="inserted"):
                gate = self._gate(len(group), program, [m.param for m in group.members])
                placed[editor.add_leaf(f"{tensor.rpartition('.')[0]}.gate", gate)] = places
        write_unit_gates(editor, placed)

    def _misses(self, ctx: Context, group: str, norms: list[fx.Node]) -> bool:
        """Reports norms in front of the gates of a group, and returns whether it gets none."""
        if not norms:
            return False
        why = (
            f"{describe(norms[0])} takes statistics over its units: "
            "with a gate at 0 behind it they are others than without the unit"
        )
        if self.exact:
            do = "exact=false puts gates behind the norm"
            ctx.missed(group, "no gates inserted", why, code="no-place", do=do)
        else:
            do = "delete-gated{exact=false} removes such units and measures the change"
            ctx.remark("analysis", "statistics", group, "its gates stand behind a norm", why, do)
        return self.exact

    def _wants(self, path: str) -> bool:
        names = (path, path.rpartition(".")[0])
        ignored = any(fnmatchcase(n, glob) for n in names for glob in self.ignore)
        return fnmatchcase(path, self.where) and not ignored

    def _gate(self, size: int | None, program: Program, names: Iterable[str]) -> Gate:
        tensors = program.tensors()
        like = next((tensors[n] for n in names if tensors[n].is_floating_point()), torch.ones(()))
        exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        device = "cpu" if program.stored is not None else like.device  # numbers of its own
        return Gate(
            size, self.kind, self.estimator, like=torch.empty(0, dtype=exact, device=device)
        )


def _remark_left(ctx: Context, add: fx.Node, value: fx.Node) -> None:
    """Reports why something that looks like a residual branch is none."""
    returned = any(user.op == "output" for user in value.users)
    why = f"its branch computes {value.name}, which " + (
        "the network returns" if returned else "nodes outside of the branch read"
    )
    do = (
        "capture the network without that output; use_cache=False for a key-value cache"
        if returned
        else ""
    )
    ctx.missed(add, "no gate inserted", why, code="read-outside", do=do)


def _is_gate(editor: Editor, node: fx.Node) -> bool:
    return isinstance(editor.leaf(node), Gate)
