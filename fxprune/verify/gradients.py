"""Whether a model and the program captured from it have the same gradients."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fxprune.capture.failure import first_line
from fxprune.errors import VerifyError
from fxprune.graph.program import Program, TracedModule, named_tensors
from fxprune.process.state import callers_device, undisturbed
from fxprune.remark import Remark
from fxprune.stand_in import stand_in
from fxprune.verify.check import TOLERANCE, Check, Judged, least_exact, run_batch
from fxprune.verify.inputs import Batch, batches_of
from fxprune.verify.noise import noisy
from fxprune.verify.types import gradient_types

Tensor = torch.Tensor
Gradients = dict[str, Tensor | None]
_AGAINST = "the gradients of the model"
_NEGLIGIBLE = (
    1e-2  # of the largest gradient: below it, a gradient may be the rounding error of a zero
)
_SHAKEN = 4  # times what roundings of the tensors do to a gradient of 16 bits may be a rounding error of its own


def compare_gradients(
    model: nn.Module, program: Program, *, seed: int = 0
) -> tuple[list[Check], list[Remark]]:
    """Holds the gradients of a captured program against those of its model; a remark where the model has none.

    Both run in their present mode, on random inputs like the example's, and one backward of the same random
    projection of their outputs is taken. Compared are the gradients of parameters, and of the inputs whose
    examples require one, each in the least exact type that it is computed from. A gradient that 16-bit numbers
    went into may differ more, by a few times the effect that rounding the model's tensors to such numbers has on
    it. The model, the program and their gradients stay as they are.

    Raises:
        VerifyError: a gradient differs.
    """
    tensors = named_tensors(model)
    state = {**tensors, **noisy(tensors, seed)}
    trained = {id(state[name]) for name, x in tensors.items() if x.requires_grad}
    known = {name: state[name] for name in program.tensors() if name in state}
    batch = next(iter(batches_of(program, seed)))
    try:
        wanted = _gradients(model, state, trained, program, batch, seed)
    except Exception as error:
        return [], [_not_run(model, error)]
    try:
        found = _gradients(program.module, known, trained, program, batch, seed)
    except Exception as error:
        raise _differs(
            model, program, "its backward fails", f"{type(error).__name__}: {first_line(error)}"
        ) from error
    errors = _errors(wanted, found, gradient_types(program))
    if rough := {e.dtype for e in errors if not _allows(e) and e.dtype.itemsize <= 2}:
        eps = max(torch.finfo(dtype).eps for dtype in rough)
        shaken = _gradients(model, state, trained, program, batch, seed, eps)
        errors = [e if _allows(e) else _beside(e, wanted, found, shaken) for e in errors]
    if bad := {e.name: e for e in errors if not _allows(e)}:
        places = _first_uses(program)
        last = max(bad, key=lambda name: places.get(name, -1))
        where = f"{last} (in backward order the first of {len(bad)} that differ)"
        why = (
            f"its largest entry is {_size(found.get(last)):.1e}, that of the model's {_size(wanted[last]):.1e}"
            f"; relative error {bad[last].error:.1e}, allowed {_allowed(bad[last]):.0e}"
        )
        raise _differs(model, program, f"the gradient of {where}", why)
    return [_check(errors, batch)], []


class _Backward(nn.Module):
    """Calls a module and propagates backward while its tensors are replaced: a checkpoint reads them again."""

    def __init__(self, module: nn.Module, seed: int) -> None:
        super().__init__()
        self.module, self._seed = module, seed

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rng = torch.Generator().manual_seed(self._seed)
        loss: Any = 0
        for x in pytree.tree_leaves(self.module(*args, **kwargs)):
            if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
                continue
            real = torch.view_as_real(x) if x.is_complex() else x
            factor = torch.randn(real.shape, generator=rng, dtype=torch.float64).to(real)
            loss = loss + (real * factor).sum() if x.requires_grad else loss
        if isinstance(loss, Tensor):
            loss.backward()  # type: ignore[no-untyped-call]


def _gradients(
    module: nn.Module,
    state: Mapping[str, Tensor],
    trained: set[int],
    program: Program,
    batch: Batch,
    seed: int,
    eps: float = 0.0,
) -> Gradients:
    """The gradients of tensors by their first name, and of inputs by their number.

    Every tensor is off by a random share of its numbers, of the size of `eps`.
    """
    rng = torch.Generator().manual_seed(seed)
    copies = {
        id(t): _off_by(eps, t.detach(), rng).requires_grad_(id(t) in trained)
        for t in state.values()
    }
    inputs: dict[str, Tensor] = {}
    examples = pytree.tree_leaves((program.args, dict(program.kwargs)))

    def run(args: tuple[Any, ...], kwargs: Any) -> list[Any]:
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        leaves = [_off_by(eps, x, rng) if isinstance(x, Tensor) else x for x in leaves]
        for i, (x, example) in enumerate(zip(leaves, examples, strict=True)):
            if isinstance(x, Tensor) and example.requires_grad:
                inputs[f"input {i}"] = x.detach_().requires_grad_()
        given, named = pytree.tree_unflatten(leaves, spec)
        tensors = {f"module.{name}": copies[id(t)] for name, t in state.items()}
        copied = nullcontext(module) if isinstance(module, TracedModule) else stand_in(module)
        with undisturbed(), copied as twin, callers_device(), torch.enable_grad():
            backward = _Backward(twin, seed)
            backward.training = module.training
            functional_call(backward, tensors, (given, named))
        return []

    run_batch(run, batch, seed)
    first: dict[int, str] = {}
    for name, x in state.items():
        first.setdefault(id(x), name)
    named = {name: copies[i] for i, name in first.items() if i in trained}
    return {name: _dense(x.grad) for name, x in (named | inputs).items()}


def _dense(x: Tensor | None) -> Tensor | None:
    """The gradient; that of an embedding may be sparse."""
    return x if x is None or x.layout == torch.strided else x.to_dense()


def _off_by(eps: float, x: Tensor, rng: torch.Generator) -> Tensor:
    """A copy of a tensor, each number off by a share of the size of `eps`."""
    if not (eps and x.is_floating_point()):
        return x.clone()
    shares = 1 + eps * torch.randn(x.shape, generator=rng, dtype=torch.float64)
    return (x.double() * shares.to(x.device)).to(x.dtype)


def _errors(
    wanted: Gradients, found: Gradients, types: Mapping[str, frozenset[torch.dtype]]
) -> list[Judged]:
    every = least_exact(frozenset[torch.dtype]().union(*types.values()))
    least = _NEGLIGIBLE * max((_size(x) for x in wanted.values()), default=0.0)
    return [
        Judged(
            _error(found.get(name), x, least),
            least_exact(types[name]) if name in types else every,
            name,
        )
        for name, x in wanted.items()
    ]


def _beside(error: Judged, wanted: Gradients, found: Gradients, shaken: Gradients) -> Judged:
    """The error, or none where what roundings do to the gradient is of the same size."""
    want, got, other = (g.get(error.name) for g in (wanted, found, shaken))
    if want is None or got is None or other is None or error.dtype.itemsize > 2:
        return error
    same = torch.isfinite(want)
    off, rounding = (_size((x - want).masked_fill(~same, 0)) for x in (got, other))
    return error._replace(error=0.0) if off <= _SHAKEN * rounding else error


def _allowed(error: Judged) -> float:
    return min(10 * TOLERANCE[error.dtype], 0.1)


def _allows(error: Judged) -> bool:
    return error.error <= _allowed(error)


def _check(errors: list[Judged], batch: Batch) -> Check:
    none = Judged(0.0, torch.float32, "no gradient")
    worst = max(errors, key=lambda e: e.error / _allowed(e), default=none)
    return Check(
        ok=True,
        max_relative_error=worst.error,
        dtype=str(worst.dtype).removeprefix("torch."),
        tolerance=_allowed(worst),
        worst_output=f"{worst.name} (error {worst.error:.1e})",
        first_bad_node="",
        groups=(),
        batches=() if batch.size is None else (batch.size,),
        against=_AGAINST,
    )


def _size(x: Tensor | None) -> float:
    return 0.0 if x is None or not x.numel() else float(x.detach().abs().nan_to_num().max())


def _error(found: Tensor | None, wanted: Tensor | None, least: float) -> float:
    """The largest difference over the largest entry, which counts as no smaller than `least`.

    No gradient equals zeros, and NaN of the model is ignored.
    """
    if found is None or wanted is None:
        return 0.0 if _size(found) == _size(wanted) == 0 else float("inf")
    same = torch.isfinite(wanted)
    difference = _size((found - wanted).masked_fill(~same, 0))
    scale = max(_size(wanted.masked_fill(~same, 0)), least)
    return difference / scale if scale else float(difference and "inf")


def _first_uses(program: Program) -> dict[str, int]:
    """The place in the graph where each parameter is first read."""
    places = {node: i for i, node in enumerate(program.nodes)}
    return {
        str(n.target): min((places[u] for u in n.users), default=-1)
        for n in program.graph.find_nodes(op="get_attr")
    }


def _differs(model: nn.Module, program: Program, what: str, why: str) -> VerifyError:
    lost = [r.where for r in program.remarks if r.code == "capture.backward-dropped"]
    because = f"; the program does not have the backward of {', '.join(lost)}" if lost else ""
    return VerifyError(
        f"what was captured trains differently from the model: {what}",
        where=type(model).__name__,
        why=why + because,
        do="move what changes gradients (a hook on a tensor, a custom autograd Function) out of what is captured; or "
        "train the model itself, and write the plan back to it with fp.write_back",
    )


def _not_run(model: nn.Module, error: Exception) -> Remark:
    return Remark(
        "missed",
        "verify.backward-not-run",
        type(model).__name__,
        "the gradients of the captured program were not compared with the model's, which has none on random inputs",
        f"{type(error).__name__}: {first_line(error)}",
        "compare the gradients of program.module with the model's on your own inputs",
    )
