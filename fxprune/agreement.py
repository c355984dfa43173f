"""Whether the forward code of a model computes what a program computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fxprune.capture.failure import first_line, own_line
from fxprune.errors import PlanError
from fxprune.program import Program
from fxprune.torch_private import WithoutData
from fxprune.verify import TOLERANCE, constant, noise, relative_error

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
    error = agreement(model, small, seed=seed)
    types = {t.dtype for t in _tensors(model).values() if t.is_floating_point()}
    allowed = max((TOLERANCE[t] for t in types if t in TOLERANCE), default=0.0)
    if not error <= allowed:
        raise PlanError(
            f"the forward of {type(model).__name__} computes something else than the smaller program",
            where="its outputs",
            why=f"relative error {error:.1e}, allowed {allowed:.0e}: it works out a number from a size, "
            "as the scale of attention from its width, and the size is another now",
            do="use the smaller program (fp.shrink), or ignore that module",
        )


def agreement(model: nn.Module, program: Program, *, seed: int = 0) -> float:
    """Largest relative difference of a model's and a program's outputs, both with the model's tensors.

    Tensors of one repeated value have noise for the comparison. Both run in eval mode, unless the program's
    mode is fixed.

    Args:
        model: whose tensors are as long as the program's.
        program: its example inputs are replaced by random ones of the same sizes.
        seed: of inputs, noise, and random operators.
    """
    state = _noisy(model, seed)
    known = {name: state[name] for name in program.tensors() if name in state}
    rng = torch.Generator().manual_seed(seed)

    def like(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return x
        return torch.randn(x.shape, generator=rng).to(x)

    inputs = pytree.tree_map_only(torch.Tensor, like, (program.args, dict(program.kwargs)))
    runs = []
    with torch.no_grad(), torch.random.fork_rng(), _comparable(model, program):
        for module, tensors in ((model, state), (program.module, known)):
            torch.manual_seed(seed)
            runs.append(pytree.tree_leaves(functional_call(module, tensors, *inputs)))
    if len(runs[0]) != len(runs[1]):
        return float("inf")
    return max((relative_error(a, b) for a, b in zip(*runs, strict=True)), default=0.0)


def _on_meta(model: nn.Module) -> bool:
    return any(t.is_meta for t in _tensors(model).values())


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _noisy(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Copies of its tensors, a tied one once."""
    found: dict[int, torch.Tensor] = {}
    tensors = _tensors(model)
    for name, x in tensors.items():
        if id(x) in found:
            continue
        found[id(x)] = copy = x.detach().clone()
        if x.numel() > 1 and x.is_floating_point() and constant(x):
            copy += noise(name, x, seed).to(x)
    return {name: found[id(x)] for name, x in tensors.items()}


@contextmanager
def _comparable(model: nn.Module, program: Program) -> Iterator[None]:
    """Both in eval mode for the time being, where the program can switch."""
    if any(r.code == "capture.mode-fixed" for r in program.remarks):
        yield
        return
    flags = [(m, m.training) for m in model.modules()]
    training = program.module.training
    try:
        model.eval()
        program.module.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        program.module.train(training)


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
