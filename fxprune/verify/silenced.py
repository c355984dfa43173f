"""Holds a smaller program against the silenced original, number by number."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import gcd, lcm
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.analysis.axes import Axes
from fxprune.errors import VerifyError
from fxprune.graph.evaluate import Evaluator, Provide, flat_inputs
from fxprune.graph.leaf import is_inside_leaf
from fxprune.graph.program import Program, describe
from fxprune.graph.sizes import Sizes, symbolic_axes
from fxprune.plan import Kept, Plan
from fxprune.shrink.tensors import slice_axes
from fxprune.verify.reference import Silenced

Tensor = torch.Tensor
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Check:
    """The outcome of a verification.

    Attributes:
        ok: whether every output agrees within the tolerance.
        max_relative_error: largest |small - reference| over the largest |reference| of the same output.
        dtype: precision of both runs.
        tolerance: largest error allowed.
        worst_output: which output (by its place among the flat outputs), its error and batch.
        first_bad_node: the first node whose value differs, with its source line; "" where all agree.
        groups: tensors that the removed units around that node cut.
        batches: sizes of axis 0 that were tried.
        against: what the program was held against.
        change: largest relative difference that the removal itself makes to an output of the original; below
            the tolerance, no error in it could be seen. None where nothing was removed.
    """

    ok: bool
    max_relative_error: float
    dtype: str
    tolerance: float
    worst_output: str
    first_bad_node: str
    groups: tuple[str, ...]
    batches: tuple[int, ...]
    against: str = "the silenced original"
    change: float | None = None

    def __str__(self) -> str:
        state = "agrees" if self.ok else "DIFFERS"
        text = f"{state} with {self.against}: worst relative error {self.max_relative_error:.1e}"
        text += f" in {self.dtype} (allowed {self.tolerance:.0e}), batches {', '.join(map(str, self.batches))}"
        if not self.ok:
            text += f"\n  worst output: {self.worst_output}\n  first node that differs: {self.first_bad_node}"
            text += f"\n  removed around it: {', '.join(self.groups) or 'nothing'}"
        elif self.blind:
            text += (
                f"\n  but the removal itself changes the outputs by no more than {self.change:.1e}: they do not show "
                "whether it is right"
            )
        return text

    @property
    def blind(self) -> bool:
        """Whether the outputs depend so little on what was removed that the check says nothing."""
        return self.change is not None and self.change <= self.tolerance

    def raise_if_bad(self) -> Check:
        """Itself, or the error.

        Raises:
            VerifyError: the programs differ.
        """
        if self.ok:
            return self
        raise VerifyError(
            f"the result differs from {self.against} in {self.worst_output}",
            where=self.first_bad_node,
            why=f"removed around it: {', '.join(self.groups) or 'nothing'}",
            do="a rule is wrong: please report the operator; exclude the module with ignore=(...) meanwhile",
        )


def compare_programs(
    program: Program,
    axes: Axes,
    plan: Plan,
    small: Program,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Check:
    """Runs the silenced original and the smaller program on the same random inputs.

    Tensors of one repeated value (fresh norms, layer scales, a head of zeros) are given noise, the same in
    both: else an output of zeros would hide every error. Random operators are seeded alike, dropout is off.

    Raises:
        VerifyError: the program is on the meta device: there are no numbers to compare.
    """
    if any(t.is_meta for t in program.tensors().values()):
        raise VerifyError(
            "a program on the meta device has no weights to verify with", do="load weights first"
        )
    worst, where, batches, change = 0.0, "", list[int](), 0.0
    for args, kwargs, batch in batches_of(program, seed):
        runs = [
            runner.evaluate(args, kwargs)
            for runner in _runners(program, axes, plan, small, dtype, seed)
        ]
        if plan.removed.size and not batches:
            torch.manual_seed(seed)
            plain = Evaluator(program, dtype, _noisy(program, {}, seed)).evaluate(args, kwargs)
            change = max(
                (relative_error(a, b) for a, b in zip(runs[0], plain, strict=True) if _any(a)),
                default=0.0,
            )
        batches.append(batch)
        for i, (a, b) in enumerate(zip(*runs, strict=True)):
            error = relative_error(b, a)
            if error > worst or not where:
                worst, where = error, f"output {i} (batch {batch}, error {error:.1e})"
    bound = TOLERANCE[dtype]
    ok = worst <= bound
    bad, groups = ("", ()) if ok else _first_bad(program, axes, plan, small, dtype, seed)
    return Check(
        ok=ok,
        max_relative_error=worst,
        dtype=str(dtype).removeprefix("torch."),
        tolerance=bound,
        worst_output=where,
        first_bad_node=bad,
        groups=groups,
        batches=tuple(batches),
        change=change if plan.removed.size else None,
    )


def _any(x: Any) -> bool:
    return isinstance(x, Tensor) and bool(x.any())


def _runners(
    program: Program, axes: Axes, plan: Plan, small: Program, dtype: torch.dtype, seed: int
) -> Iterator[Evaluator]:
    torch.manual_seed(seed)
    yield Silenced(program, axes, plan.removed, dtype, _noisy(program, {}, seed))
    torch.manual_seed(seed)
    yield Evaluator(small, dtype, _noisy(program, plan.kept, seed))


def _noisy(program: Program, kept: Kept, seed: int) -> Provide:
    """Adds noise to tensors that hold one value; for a sliced tensor, the slice of the same noise."""
    tensors = program.tensors()

    def provide(name: str, tensor: Tensor) -> Tensor:
        whole = tensors.get(name)
        if (
            whole is None
            or whole.numel() < 2
            or not whole.is_floating_point()
            or not constant(whole)
            or is_inside_leaf(program.module, name)
        ):
            return tensor
        return tensor + slice_axes(noise(name, whole, seed), dict(kept.get(name, {}))).to(tensor)

    return provide


def noise(name: str, tensor: Tensor, seed: int) -> Tensor:
    """Numbers between 0.1 and 1.1 in float64, of the tensor's shape; they depend on its name and the seed."""
    rng = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    return 0.1 + torch.rand(tensor.shape, generator=rng, dtype=torch.float64)


def constant(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are equal."""
    first = tensor.detach().reshape(-1)[:1]
    return bool((tensor.detach() == first).all())


def relative_error(a: Any, b: Any) -> float:
    """Largest |a - b| over the largest |b|; infinite for other shapes, for NaN and for unequal non-floats."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return 0.0 if a == b else float("inf")
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else float("inf")
    a, b = (x.to(torch.complex128 if x.is_complex() else torch.float64) for x in (a, b))
    infinite = torch.isinf(b)
    if not torch.equal(a[infinite], b[infinite]):
        return float("inf")
    a, b = a.masked_fill(infinite, 0), b.masked_fill(infinite, 0)
    scale = float(b.abs().max())
    error = float((a - b).abs().max()) / (scale or 1.0)
    return error if np.isfinite(error) else float("inf")


def batches_of(program: Program, seed: int) -> Iterator[tuple[tuple[Any, ...], Any, int]]:
    """Random inputs like the example's; where the batch is free, of more rows too, one if that can be."""
    rng = torch.Generator().manual_seed(seed)
    free = _with_free_batch(program)
    leaves = pytree.tree_leaves((program.args, dict(program.kwargs)))
    size = max(
        (
            x.shape[0]
            for x in leaves
            if isinstance(x, Tensor) and x.dim() and (id(x) in free or not free)
        ),
        default=1,
    )
    for extra in (0, _more_rows(program)) if program.free_batch else (0,):
        args, kwargs = pytree.tree_map(
            lambda x, e=extra: _random_like(x, rng, e if id(x) in free else 0),
            (program.args, dict(program.kwargs)),
        )
        yield args, kwargs, size + extra


def _more_rows(program: Program) -> int:
    """By how many rows a batch may grow: what the graph halves must stay even."""
    one, two = (Sizes(lambda *_, n=n: n) for n in (1, 2))
    steps = [1]
    for node in program.graph.find_nodes(op="call_function", target=operator.floordiv):
        length, parts = node.args
        value = length.meta.get("val") if isinstance(length, fx.Node) else None
        if isinstance(value, torch.SymInt) and isinstance(parts, int):
            steps.append(parts // gcd(parts, two.number(value) - one.number(value)))
    return lcm(*steps)


def _with_free_batch(program: Program) -> set[int]:
    """Which of the example tensors, by identity, have a first axis of free length."""
    inputs = flat_inputs(program.module, program.args, program.kwargs)
    places = (n for n in program.nodes if n.op == "placeholder")
    return {
        id(x) for x, n in zip(inputs, places, strict=False) if 0 in symbolic_axes(n.meta.get("val"))
    }


def _random_like(value: Any, rng: torch.Generator, extra: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        value = torch.randn(value.shape, generator=rng, dtype=torch.float64).to(value)
    if not extra:
        return value
    rows = torch.arange(len(value) + extra, device=value.device) % len(value)
    more = value.index_select(0, rows)
    if not value.is_floating_point():
        return more
    return more + torch.randn(more.shape, generator=rng, dtype=torch.float64).to(value)


def _note(record: dict[str, Any], node: fx.Node, value: Any) -> None:
    record[node.name] = value


def _first_bad(
    program: Program, axes: Axes, plan: Plan, small: Program, dtype: torch.dtype, seed: int
) -> tuple[str, tuple[str, ...]]:
    """The first node whose kept positions differ, and the tensors cut by what was removed around it."""
    records: list[dict[str, Any]] = []
    args, kwargs, _ = next(batches_of(program, seed))
    for runner in _runners(program, axes, plan, small, dtype, seed):
        record: dict[str, Any] = {}
        runner.observe = partial(_note, record)
        runner.evaluate(args, kwargs)
        records.append(record)
    gone = np.zeros(axes.n_units, bool)
    gone[plan.removed] = True
    rescaled = {e.node for e in plan.edits if type(e).__name__ == "Rescale"}
    for node in program.nodes:
        labels, value = axes.nodes.get(node), records[0].get(node.name)
        if (
            node.op == "output"
            or node.name in rescaled
            or not isinstance(labels, tuple)
            or not isinstance(value, Tensor)
        ):
            continue
        found = records[1].get(node.name)
        cut = {
            i: np.flatnonzero(~axes.removed(x, gone))
            for i, x in enumerate(labels)
            if len(x) == value.shape[i]
        }
        if found is None or relative_error(found, slice_axes(value, cut)) > TOLERANCE[dtype]:
            return describe(node), _groups_around(node, axes, gone)
    return "none but the outputs", ()


def _groups_around(node: fx.Node, axes: Axes, gone: Any) -> tuple[str, ...]:
    near = [node, *node.all_input_nodes]
    units = np.zeros(len(gone), bool)
    for labels in (axes.nodes.get(n) for n in near):
        for label in labels if isinstance(labels, tuple) else ():
            for column in axes.final(label).columns:
                units[column] = True
    units &= gone
    return tuple(
        f"{name}:{i}"
        for name, labels in axes.params.items()
        for i, label in enumerate(labels)
        if any(units[c].any() for c in label.columns)
    )[:8]
