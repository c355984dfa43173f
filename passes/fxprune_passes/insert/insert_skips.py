"""Inserts shortcuts around sections of networks without residual connections."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np
import torch
from torch import fx, nn

from fxprune.graph.editor import Editor
from fxprune.graph.program import Program
from fxprune.graph.sizes import Sizes, is_symbolic
from fxprune.pipeline import Context, Keeps, Rewrite
from fxprune.torch_private import symbols_of
from fxprune_passes.insert.places.sections import Section, find_sections

aten = torch.ops.aten
_TRIED = 8  # lengths of a free axis at which a window is compared with the size that is wanted


@dataclass(frozen=True)
class InsertSkips(Rewrite):
    """Inserts a shortcut around each section from one activation to the next that contains one weighted layer.

    The output F(z) of the section becomes S(z) + F(z). S is the identity where the shapes are equal; else an
    average pooling to the smaller size and a 1x1 convolution to the other number of channels; in front of a
    linear layer, a mean over positions and a linear projection. The new weights are drawn at random (normal,
    variance 1 / inputs), so the function changes: train the network afterwards.

    Args:
        where: glob of the paths of the weighted layers.
    """

    name: ClassVar[str] = "insert-skips"
    keeps: ClassVar[Keeps] = "nothing"
    where: str = "*"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        sums: dict[fx.Node, fx.Node] = {}
        for section in find_sections(program):
            if not fnmatchcase(section.path, self.where):
                continue
            steps = None if section.why else _shortcut(section)
            if steps is None:
                why = section.why or "its output has more positions than its input"
                ctx.missed(
                    section.end,
                    f"no shortcut inserted around {section.path}",
                    why,
                    code="no-shortcut",
                )
            elif ctx.allow(
                section.end,
                f"inserted a shortcut around {section.path}: {_text(steps)}",
                code="inserted",
            ):
                assert section.start is not None
                start = sums.get(section.start, editor.node(section.start))
                sums[section.end] = _put(editor, section, start, steps, ctx.rng)
        return editor.finish()


def _shortcut(section: Section) -> list[tuple[str, Any]] | None:
    """The steps (pool, flat, project) from the start to a value with the shape of the end; None if there are none."""
    assert section.start is not None
    a, b = section.start.meta["val"].shape, section.end.meta["val"].shape
    if [str(n) for n in a] == [str(n) for n in b]:
        return []
    if a[0] != b[0] or len(b) < 2:
        return None
    if len(a) == len(b) == 2:
        return [("project", 0)]
    if len(b) == 2:
        return [("pool", [1] * (len(a) - 2)), ("flat", 1), ("project", 0)]
    return _resampled(list(a[1:]), list(b[1:])) if len(a) == len(b) and len(a) <= 5 else None


def _resampled(a: list[Any], b: list[Any]) -> list[tuple[str, Any]] | None:
    """The steps between feature maps `[channels, *sizes]`."""
    if not (isinstance(a[0], int) and isinstance(b[0], int)):
        return None
    if not all(_may_pool(m, n) for m, n in zip(a[1:], b[1:], strict=True)):
        return None
    same = [str(n) for n in a[1:]] == [str(n) for n in b[1:]]
    steps: list[tuple[str, Any]] = [] if same else [("pool", b[1:])]
    return [*steps, ("project", len(a) - 1)] if a[0] != b[0] else steps


def _may_pool(m: Any, n: Any) -> bool:
    """Whether an axis can be averaged to a length; one of free length by windows of one size only."""
    if isinstance(m, int) and isinstance(n, int):
        return m >= n
    return _window(m, n) is not None


def _window(m: Any, n: Any) -> int | None:
    """The size of windows that divide an axis into so many; None where there is none that always does."""
    if isinstance(m, int) and isinstance(n, int):
        return m // n if m % n == 0 else None
    symbols = {
        s: known.hint
        for x in (m, n)
        if is_symbolic(x)
        for s in x.node.expr.free_symbols
        if (known := symbols_of(x)[s.name]).hint is not None
    }
    at = [Sizes.of_symbols({s: hint + k for s, hint in symbols.items()}) for k in range(_TRIED)]
    window = at[0].number(m) // max(at[0].number(n), 1)
    fits = window and all(sizes.number(m) // window == sizes.number(n) for sizes in at)
    return window if fits else None


def _text(steps: list[tuple[str, Any]]) -> str:
    names = {"pool": "average pooling", "flat": "flatten", "project": "projection"}
    return ", ".join(names[kind] for kind, _ in steps) or "identity"


def _put(
    editor: Editor,
    section: Section,
    value: fx.Node,
    steps: list[tuple[str, Any]],
    rng: np.random.Generator,
) -> fx.Node:
    """Adds the shortcut from a value to the end of a section, and returns the sum."""
    end = editor.node(section.end)
    before, like = end.next, editor.tensor(section.weight)
    for kind, detail in steps:
        if kind == "pool":
            value = _pool(editor, value, detail, before, end)
        elif kind == "flat":
            value = editor.call(aten.flatten.using_ints, (value, 1), before=before, like=end)
        else:
            value = _project(editor, section, value, detail, before, like, rng)
    total = editor.call(aten.add.Tensor, (value, end), before=before, like=end)
    end.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
    return total


def _pool(
    editor: Editor, value: fx.Node, sizes: list[int], before: fx.Node, like: fx.Node
) -> fx.Node:
    """Averages over windows of equal size, or by an adaptive pool where the sizes are not divisible."""
    spatial = len(sizes)
    old = list(value.meta["val"].shape[2:])
    windows = [_window(m, n) for m, n in zip(old, sizes, strict=True)]
    if None not in windows and any(is_symbolic(n) or n > 1 for n in sizes):
        pool = getattr(aten, f"avg_pool{spatial}d").default
        return editor.call(pool, (value, windows, windows), before=before, like=like)
    pool = getattr(aten, f"adaptive_avg_pool{spatial}d").default
    return editor.call(pool, (value, sizes), before=before, like=like)


def _project(
    editor: Editor,
    section: Section,
    value: fx.Node,
    spatial: int,
    before: fx.Node,
    like: torch.Tensor,
    rng: np.random.Generator,
) -> fx.Node:
    """Projects a value to the channels of the end by a linear layer or a 1x1 convolution."""
    inputs, outputs = value.meta["val"].shape[1], section.end.meta["val"].shape[1]
    numbers = rng.normal(0, inputs**-0.5, (outputs, inputs, *([1] * spatial)))
    weight = nn.Parameter(torch.from_numpy(numbers).to(like), like.requires_grad)
    name = editor.free_name(f"{section.path}.skip.weight".lstrip("."))
    node = editor.add_tensor(name, weight, before=before)
    operator = getattr(aten, f"conv{spatial}d") if spatial else aten.linear
    return editor.call(
        operator.default, (value, node), before=before, like=editor.node(section.end)
    )
