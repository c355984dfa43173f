"""Puts shortcuts around sections of networks that have none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import fx, nn

from fxprune.graph.editor import Editor
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Keeps, Rewrite
from fxprune.structure.activations import find_activations
from fxprune_passes.insert.layer_ends import weight_of

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class _Section:
    """What lies between two activation functions.

    Attributes:
        start: the value that the section is made of.
        end: the value of the activation function that ends it.
        weight: name of the weight of its layer.
        why: why it gets no shortcut; "" where it does.
    """

    start: fx.Node | None
    end: fx.Node
    weight: str
    why: str = ""

    @property
    def path(self) -> str:
        return self.weight.rpartition(".")[0]


@dataclass(frozen=True)
class InsertSkips(Rewrite):
    """Puts a shortcut around each stretch from one activation to the next that holds one weighted layer.

    What the stretch gives, F(z), becomes S(z) + F(z). S is the identity where the shapes are equal;
    else an average pooling to the smaller size, and a 1x1 convolution to the other number of channels; in front
    of a linear layer, a mean over positions and a linear projection. The new weights are drawn at random
    (normal, variance 1 / inputs), so the function changes: train the network afterwards.

    Args:
        where: glob of the paths of the weighted layers.
    """

    name: ClassVar[str] = "insert-skips"
    keeps: ClassVar[Keeps] = "nothing"
    where: str = "*"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        sums: dict[fx.Node, fx.Node] = {}
        for section in _sections(program):
            if not fnmatchcase(section.path, self.where):
                continue
            steps = None if section.why else _shortcut(section)
            if steps is None:
                why = section.why or "its result has more positions than what it is made of"
                ctx.missed(
                    section.end, f"no shortcut around {section.path}", why, code="no-shortcut"
                )
            elif ctx.allow(
                section.end, f"shortcut around {section.path}: {_text(steps)}", code="inserted"
            ):
                assert section.start is not None
                start = sums.get(section.start, editor.node(section.start))
                sums[section.end] = _put(editor, section, start, steps, ctx.rng)
        return editor.finish()


def _sections(program: Program) -> Iterator[_Section]:
    """The stretches that end at an activation function and hold a weighted layer."""
    found = list(find_activations(program))
    ends = {one.node for one in found}
    for one in found:
        yield from _before(one.source, one.node, ends)


def _before(node: fx.Node, end: fx.Node, ends: set[fx.Node]) -> Iterator[_Section]:
    """The stretch behind the activation before a value, if it holds a weighted layer."""
    weights: list[str] = []
    why = ""
    while node not in ends:
        if weight := weight_of(node):
            weights.append(weight)
        computed = [n for n in node.all_input_nodes if n.op != "get_attr"]
        data = [n for n in node.users if not str(n.target).startswith("aten.sym_")]
        if node.op == "placeholder":
            why = "no activation function comes before it"
            break
        if len(data) > 1 or len(computed) != 1:
            why = f"node {node.name} is read elsewhere too, or made of several values"
            break
        node = computed[0]
    if len(weights) > 1:
        why = f"it holds {len(weights)} weighted layers: {', '.join(reversed(weights))}"
    if weights:
        yield _Section(None if why else node, end, weights[-1], why)


def _shortcut(section: _Section) -> list[tuple[str, Any]] | None:
    """The steps from the start to a value of the shape of the end: pool, flat, project."""
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
    """Steps between maps `[channels, *sizes]`."""
    if not all(isinstance(n, int) for n in (*a, *b)) or any(
        m < n for m, n in zip(a[1:], b[1:], strict=True)
    ):
        return None
    steps: list[tuple[str, Any]] = [("pool", b[1:])] if a[1:] != b[1:] else []
    return [*steps, ("project", len(a) - 1)] if a[0] != b[0] else steps


def _text(steps: list[tuple[str, Any]]) -> str:
    names = {"pool": "average pooling", "flat": "flatten", "project": "projection"}
    return ", ".join(names[kind] for kind, _ in steps) or "identity"


def _put(
    editor: Editor,
    section: _Section,
    value: fx.Node,
    steps: list[tuple[str, Any]],
    rng: np.random.Generator,
) -> fx.Node:
    """Adds the shortcut from a value to the end of a section; returns the sum."""
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
    """Averages over windows; over as many as are wanted where they cannot all be of one size."""
    spatial = len(sizes)
    old = list(value.meta["val"].shape[2:])
    even = all(isinstance(m, int) and m % n == 0 for m, n in zip(old, sizes, strict=True))
    if even and prod(sizes) > 1:
        window = [m // n for m, n in zip(old, sizes, strict=True)]
        pool = getattr(aten, f"avg_pool{spatial}d").default
        return editor.call(pool, (value, window, window), before=before, like=like)
    pool = getattr(aten, f"adaptive_avg_pool{spatial}d").default
    return editor.call(pool, (value, sizes), before=before, like=like)


def _project(
    editor: Editor,
    section: _Section,
    value: fx.Node,
    spatial: int,
    before: fx.Node,
    like: torch.Tensor,
    rng: np.random.Generator,
) -> fx.Node:
    """A linear layer or 1x1 convolution to the channels of the end."""
    inputs, outputs = value.meta["val"].shape[1], section.end.meta["val"].shape[1]
    numbers = rng.normal(0, inputs**-0.5, (outputs, inputs, *([1] * spatial)))
    weight = nn.Parameter(torch.from_numpy(numbers).to(like), like.requires_grad)
    name = editor.free_name(f"{section.path}.skip.weight".lstrip("."))
    node = editor.add_tensor(name, weight, before=before)
    operator = getattr(aten, f"conv{spatial}d") if spatial else aten.linear
    return editor.call(
        operator.default, (value, node), before=before, like=editor.node(section.end)
    )
