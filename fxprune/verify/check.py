"""The outcome of a verification, and the one loop that holds two runs against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fxprune.errors import VerifyError
from fxprune.graph.program import Program, named_tensors
from fxprune.process.random_state import seeded
from fxprune.verify.inputs import Batch

Tensor = torch.Tensor
Run = Callable[[tuple[Any, ...], Any], Sequence[Any]]
"""From positional and keyword inputs to flat outputs."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class Judged(NamedTuple):
    """How far a value is from what it should be.

    Attributes:
        error: its relative error.
        dtype: the type in whose digits it should agree.
        name: which value it is, in words.
    """

    error: float
    dtype: torch.dtype
    name: str


Judge = Callable[[Sequence[Any], Sequence[Any]], Iterable[Judged]]
"""From the outputs found and wanted to what is judged: the outputs, and perhaps more."""


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
        batches: sizes of axis 0 that were tried; empty where the inputs have no common batch axis.
        against: what the program was held against.
        change: largest relative difference that the removal itself makes to an output of the original; below
            the tolerance, no error in it could be seen. None where nothing was removed.
        undefined: where the reference itself returns NaN, so that nothing can agree with it; "" where it does not.
        regions: how many regions were compared, each by itself; None where the whole was.
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
    undefined: str = ""
    regions: int | None = None

    def __str__(self) -> str:
        state = "agrees" if self.ok else "DIFFERS"
        text = f"{state} with {self.against}: worst relative error {self.max_relative_error:.1e}"
        text += f" in {self.dtype} (allowed {self.tolerance:.0e})"
        text += f", batches {', '.join(map(str, self.batches))}" if self.batches else ""
        text += f", {self.regions} changed regions" if self.regions is not None else ""
        if self.undefined:
            text += f"\n  {self.against} itself returns NaN: {self.undefined}"
        elif not self.ok:
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
        """Returns the check itself.

        Raises:
            VerifyError: the two computations differ.
        """
        if self.ok:
            return self
        self.raise_if_undefined()
        raise VerifyError(
            f"the result differs from {self.against} in {self.worst_output}",
            where=self.first_bad_node,
            why=f"removed around it: {', '.join(self.groups) or 'nothing'}",
            do="a rule is wrong: please report the operator; exclude the module with ignore=(...) meanwhile",
        )

    def raise_if_undefined(self) -> None:
        """Checks that the reference returned numbers.

        Raises:
            VerifyError: it returned NaN.
        """
        if self.undefined:
            raise VerifyError(
                f"{self.against} itself returns NaN",
                where=self.undefined,
                why="on random inputs like the example's, it is not a number before anything is changed",
                do="repair the weights; where the model is defined for some inputs only, as a logarithm is, pass "
                "verify=False and compare the result on inputs of your own",
            )


def compare_runs(
    wanted: Run,
    found: Run,
    batches: Iterable[Batch],
    *,
    dtype: torch.dtype,
    against: str,
    tolerance: float | None = None,
    judge: Judge | None = None,
    seed: int = 0,
    may_refuse: bool = False,
    until_bad: bool = False,
) -> Check:
    """Runs two computations on the same inputs and compares their outputs.

    Each run is given copies of the inputs and starts from the same random state, which is restored afterwards.

    Args:
        wanted: the computation that is right.
        found: the computation that should return the same.
        batches: the inputs.
        dtype: precision of both runs.
        against: what `wanted` is, in words.
        tolerance: largest relative error allowed; by default, that of the precision.
        judge: says what of the two runs is compared, and in which type; by default, the outputs in `dtype`.
        seed: of random operators.
        may_refuse: whether `wanted` may raise on a second batch, which is then not compared.
        until_bad: stop at the first batch that does not agree.

    Raises:
        Exception: whatever a run raises.
    """
    worst, where, undefined, tried = Judged(0.0, dtype, ""), "", "", list[Batch]()
    allowed = (lambda _: tolerance) if tolerance is not None else TOLERANCE.__getitem__
    for given in batches:
        try:
            batch, expected = _run_first(wanted, given, seed)
        except Exception:
            if not (may_refuse and tried):
                raise
            break
        tried.append(batch)
        undefined = undefined or _undefined(expected)
        got = run_batch(found, batch, seed)
        judged = judge(got, expected) if judge else judge_outputs(got, expected, dtype)
        for one in judged:
            if not where or one.error / allowed(one.dtype) > worst.error / allowed(worst.dtype):
                size = "" if batch.size is None else f"batch {batch.size}, "
                worst, where = one, f"{one.name} ({size}error {one.error:.1e})"
        if until_bad and not worst.error <= allowed(worst.dtype):
            break
    ok = worst.error <= allowed(worst.dtype)
    return Check(
        ok=ok,
        max_relative_error=worst.error,
        dtype=str(worst.dtype).removeprefix("torch."),
        tolerance=allowed(worst.dtype),
        worst_output=where or "no output",
        first_bad_node="",
        groups=(),
        batches=tuple(b.size for b in tried if b.size is not None),
        against=against,
        undefined="" if ok else undefined,
    )


def _run_first(run: Run, batch: Batch, seed: int) -> tuple[Batch, Sequence[Any]]:
    """The outputs for a batch, or for the plain one in its place where the computation refuses it."""
    if batch.plain is not None:
        try:
            return batch, run_batch(run, batch, seed)
        except Exception:
            batch = batch.plain
    return batch, run_batch(run, batch, seed)


def run_batch(run: Run, batch: Batch, seed: int) -> Sequence[Any]:
    """The outputs for copies of the inputs; random operators are seeded, and no random state changes."""
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (batch.args, batch.kwargs))
    with seeded(seed):
        return run(args, kwargs)


def is_undefined(value: Any) -> bool:
    """Whether a value is a tensor with a NaN in it."""
    return isinstance(value, Tensor) and bool(value.isnan().any())


def _undefined(outputs: Sequence[Any]) -> str:
    return next((f"output {i}" for i, x in enumerate(outputs) if is_undefined(x)), "")


def judge_outputs(
    found: Sequence[Any], wanted: Sequence[Any], dtypes: torch.dtype | Sequence[torch.dtype]
) -> Iterator[Judged]:
    """The error of each output, in one type or in one for each."""
    types = [dtypes] * len(wanted) if isinstance(dtypes, torch.dtype) else dtypes
    if len(found) != len(wanted):
        name = f"{len(found)} outputs in place of {len(wanted)}"
        yield Judged(inf, least_exact(types), name)
        return
    for i, (a, b, dtype) in enumerate(zip(found, wanted, types, strict=True)):
        yield Judged(relative_error(a, b), dtype, f"output {i}")


def relative_error(a: Any, b: Any) -> float:
    """Largest |a - b| over the largest |b|; infinite for different shapes, for NaN and for unequal non-floats."""
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


def least_exact(types: Iterable[torch.dtype]) -> torch.dtype:
    """The type with the largest tolerance; float32 where none has one."""
    return max(TOLERANCE.keys() & set(types) or {torch.float32}, key=TOLERANCE.__getitem__)


def on_meta(module: torch.nn.Module) -> bool:
    """Whether a tensor of the module is on the meta device: it then has no numbers to compare."""
    return any(t.is_meta for t in named_tensors(module).values())


def require_numbers(program: Program) -> None:
    """Refuses a program that has no numbers to compare.

    Raises:
        VerifyError: a tensor of the program is on the meta device.
    """
    if not program.has_numbers:
        raise VerifyError(
            "a program on the meta device has no weights to verify with",
            do="load weights first, or read them from a checkpoint: fp.open_shards(program, folder)",
        )
