"""Whether the forward code of a model computes what a program computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fxprune.capture.failure import first_line, own_line
from fxprune.capture.unchanged import unchanged
from fxprune.errors import PlanError, VerifyError
from fxprune.graph.program import Program, named_tensors
from fxprune.remark import Remark
from fxprune.torch_private import WithoutData
from fxprune.verify.silenced import TOLERANCE, Check, batches_of, constant, noise, relative_error

_TEACH = (
    "some class spells a size itself: teach it with fxprune.write_back.register_sizes, "
    "ignore that module, or use the smaller program (fp.shrink)"
)


def check_sizes(model: nn.Module, program: Program) -> None:
    """Runs the model's forward without data, and compares the sizes of what it returns.

    Args:
        model: with some positions of its tensors gone.
        program: of the model before.

    Raises:
        PlanError: it fails, or returns other sizes than before.
    """
    leaves, spec = pytree.tree_flatten((program.args, dict(program.kwargs)))
    if _on_meta(model):
        leaves = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in leaves]
    try:
        out = WithoutData(model, leaves, spec)()
    except Exception as error:
        raise PlanError(
            f"the forward of {type(model).__name__} cannot run at the new sizes",
            where=own_line(error),
            why=f"{type(error).__name__}: {first_line(error)}",
            do=_TEACH,
        ) from error
    _compare_sizes(model, out, program)


def check_numbers(model: nn.Module, small: Program, *, seed: int = 0) -> None:
    """Runs the model and the smaller program, both with the model's tensors, on the same inputs.

    On the meta device there are no numbers, and nothing is run.

    Args:
        model: with the positions gone that a plan removes.
        small: the smaller program of that plan.
        seed: of the inputs.

    Raises:
        PlanError: they compute different things.
    """
    if _on_meta(model):
        return
    check = compare_model(model, small, seed=seed)
    if not check.ok:
        raise PlanError(
            f"the forward of {type(model).__name__} computes something else than the smaller program",
            where=check.worst_output,
            why=f"relative error {check.max_relative_error:.1e}, allowed {check.tolerance:.0e}: it works out "
            "a number from a size, as the scale of attention from its width, and the size is another now",
            do="use the smaller program (fp.shrink), or ignore that module",
        )


def compare_model(model: nn.Module, program: Program, *, seed: int = 0) -> Check:
    """Runs a model and a program, both with the model's tensors, on the same random inputs.

    Tensors of one repeated value have noise for that. Both run in eval mode, unless the program's mode is
    fixed; random operators are seeded alike. A second size of a free batch is tried where the model takes it.

    Args:
        model: whose tensors are as long as the program's; it stays as it is.
        program: which should compute the same.
        seed: of inputs, noise and random operators.

    Raises:
        Exception: what the model raised at the batch of the program's example.
    """
    state = _noisy(model, seed)
    known = {name: state[name] for name in program.tensors() if name in state}
    worst, where, batches = 0.0, "", list[int]()
    for args, kwargs, batch in batches_of(program, seed):
        try:
            wanted = _run(model, state, args, kwargs, program, seed)
        except Exception:
            if not batches:
                raise
            break
        batches.append(batch)
        found = _run(program.module, known, args, kwargs, program, seed)
        if len(found) != len(wanted):
            worst, where = float("inf"), f"{len(found)} outputs in place of {len(wanted)}"
            break
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            error = relative_error(a, b)
            if not error <= worst or not where:
                worst, where = error, f"output {i} (batch {batch}, error {error:.1e})"
    dtype, allowed = _tolerance(model)
    return Check(
        ok=worst <= allowed,
        max_relative_error=worst,
        dtype=dtype,
        tolerance=allowed,
        worst_output=where,
        first_bad_node="",
        groups=(),
        batches=tuple(batches),
        against="the model",
    )


def check_capture(
    model: nn.Module, program: Program, *, seed: int = 0
) -> tuple[list[Check], list[Remark]]:
    """Holds a captured program against its model; a remark where the model does not run.

    On the meta device there is nothing to compare.

    Raises:
        VerifyError: they compute different things.
    """
    if _on_meta(model):
        return [], []
    try:
        check = compare_model(model, program, seed=seed)
    except Exception as error:
        return [], [
            Remark(
                "missed",
                "verify.model-not-run",
                type(model).__name__,
                "what was captured was not compared with the model, which does not run on random inputs",
                f"{type(error).__name__}: {first_line(error)}",
                "compare program.module with the model on inputs of your own",
            )
        ]
    if not check.ok:
        raise VerifyError(
            f"what was captured differs from the model in {check.worst_output}",
            where=type(model).__name__,
            why=f"{check}",
            do="report this network, or take what torch.export makes of it: "
            "fp.prune(torch.export.export(model, args), args)",
        )
    return [check], []


def _run(
    module: nn.Module,
    state: dict[str, torch.Tensor],
    args: Any,
    kwargs: Any,
    program: Program,
    seed: int,
) -> list[Any]:
    """Its outputs, flat; whatever is written is a copy."""
    copied = {id(t): t.clone() for t in state.values()}
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, (args, kwargs))
    with unchanged(module), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        if not any(r.code == "capture.mode-fixed" for r in program.remarks):
            module.eval()
        tensors = {name: copied[id(t)] for name, t in state.items()}
        return pytree.tree_leaves(functional_call(module, tensors, args, dict(kwargs)))


def _tolerance(model: nn.Module) -> tuple[str, float]:
    """The least exact of its types, and what that allows."""
    types = {t.dtype for t in named_tensors(model).values()} & TOLERANCE.keys() or {torch.float32}
    dtype = max(types, key=TOLERANCE.__getitem__)
    return str(dtype).removeprefix("torch."), TOLERANCE[dtype]


def _on_meta(model: nn.Module) -> bool:
    return any(t.is_meta for t in named_tensors(model).values())


def _noisy(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Copies of its tensors, a tied one once."""
    found: dict[int, torch.Tensor] = {}
    tensors = named_tensors(model)
    for name, x in tensors.items():
        if id(x) in found:
            continue
        found[id(x)] = copy = x.detach().clone()
        if x.numel() > 1 and x.is_floating_point() and constant(x):
            copy += noise(name, x, seed).to(x)
    return {name: found[id(x)] for name, x in tensors.items()}


def _compare_sizes(model: nn.Module, out: Any, program: Program) -> None:
    """Outputs lose nothing: only their free lengths may be other numbers."""
    returned = program.graph.output_node().args[0]
    wanted = [n.meta.get("val") for n in pytree.tree_leaves(returned) if isinstance(n, fx.Node)]
    found = [x for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
    for i, (a, b) in enumerate(zip(found, wanted, strict=False)):
        if isinstance(b, torch.Tensor) and not _fits(a, b):
            raise PlanError(
                f"output {i} of {type(model).__name__} has the shape {tuple(a.shape)}",
                why=f"it was {tuple(b.shape)} before: some class spells a size itself",
                do=_TEACH,
            )


def _fits(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if found.dim() != wanted.dim():
        return False
    pairs = zip(found.shape, wanted.shape, strict=True)
    return all(not isinstance(b, int) or a == b for a, b in pairs)
