"""Random pipelines on random networks, each pass held to the program that it was given, forward and backward.

The comparison is torch's own, on the outputs of the modules; nothing of `fxprune.verify` takes part in it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture import capture
from fxprune.graph.gate import gates
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.pipeline.result import Result

SCOPES = ("block", "layer", "unit", "inner", "head")
DELETES = ("delete-gated", "delete-gated", "decide-gated | shrink")
REWRITES = (
    "absorb-gates",
    "fold-batchnorm",
    "dead-units",
    "fuse-linear",
    "drop-identity",
    "merge-duplicates",
    "fold-constants",
    "fold-constants{parameters=true}",
    "dead-code",
    "delete-gated",
)


class DifferenceError(AssertionError):
    """A pass made something else of a program than it declares; the message says which."""


def check_pipeline(
    model: nn.Module, args: tuple[Tensor, ...], seed: int, *, train: bool
) -> list[str]:
    """Runs random passes on a network in float64 and compares after each of them; returns what ran.

    Args:
        model: the network.
        args: example inputs; a number other than the batch stays as it is.
        seed: of the passes, of the values of gates and of the inputs.
        train: whether the network is in train mode.

    Raises:
        DifferenceError: a pass did not keep what it declares.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    args = tuple(torch.randn(a.shape, dtype=torch.float64) for a in args)
    program = capture(shaken(model).double().train(train), args)
    ran: list[str] = []
    verify = (
        rng.random() < 0.25
    )  # the comparison here is the judge; that of the library must not object
    for text in _steps(rng):
        result = run_pipeline(program, text, verify=verify)
        after = result.program
        if text.startswith("insert"):
            compare(program, after, args, text)
            _close_some(after, rng)
        elif "shrink" not in text or not _differs(result):
            compare(program, after, args, text)
        program = after
        ran.append(text)
    return ran


def shaken(model: nn.Module) -> nn.Module:
    """The model with random running statistics, so that a norm in eval mode is no identity."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return model


def _steps(rng: random.Random) -> Iterator[str]:
    for scope in rng.sample(SCOPES, rng.randint(1, 3)):
        kind = rng.choice(("hard", "soft"))
        exact = rng.choice(("true", "false"))
        yield f"insert-gates{{scope={scope} kind={kind} exact={exact}}}"
    yield rng.choice(DELETES)
    for _ in range(rng.randint(1, 4)):
        yield rng.choice(REWRITES)


def _differs(result: Result) -> bool:
    return any(r.code == "decide-gated.differs" for r in result.remarks)


@torch.no_grad()
def _close_some(program: Program, rng: random.Random) -> None:
    """Gives gates random values: many units of some are at 0, few branches are."""
    for gate in gates(program).values():
        theta = torch.ones_like(gate.theta)
        if gate.theta.dim():
            if rng.random() < 0.8:
                theta = torch.tensor([float(rng.random() < 0.6) for _ in theta]).to(theta)
            if gate.kind == "soft" and rng.random() < 0.3:
                theta *= rng.choice((0.5, -1.5, 2.0))
        elif rng.random() < 0.3:
            theta.zero_()
        gate.set(theta)


def compare(before: Program, after: Program, args: tuple[Tensor, ...], text: str) -> None:
    """Holds outputs and the gradients of the inputs against each other, on the inputs given and on other numbers.

    Raises:
        DifferenceError: they are not close.
    """
    for inputs in (args, tuple(torch.randn_like(a) for a in args)):
        wanted, found = (_run(p, inputs) for p in (before, after))
        if len(wanted) != len(found):
            raise DifferenceError(f"{text}: {len(found)} results in place of {len(wanted)}")
        for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
            scale = float(a.abs().max()) if a.numel() else 0.0
            if a.isnan().any():
                continue
            if a.shape != b.shape or not torch.allclose(
                b, a, rtol=1e-7, atol=1e-8 * max(scale, 1e-3)
            ):
                error = float((a - b).abs().max()) if a.shape == b.shape else float("inf")
                raise DifferenceError(
                    f"{text}: result {i} differs by {error:.1e}, its largest number is {scale:.1e}"
                )


def _run(program: Program, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs, and the gradients of a weighted sum of them all to the inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.manual_seed(0)
    outputs = [y for y in pytree.tree_leaves(program.module(*leaves)) if isinstance(y, Tensor)]
    traced = [w for w in projections(outputs) if w.requires_grad]
    if not traced:
        return [*outputs, *map(torch.zeros_like, leaves)]
    grads = torch.autograd.grad(sum(traced[1:], traced[0]), leaves, allow_unused=True)
    return [
        *(y.detach() for y in outputs),
        *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)),
    ]


def projections(outputs: list[Tensor]) -> list[Tensor]:
    """A fixed weighted sum of the numbers of each output."""
    return [(y * torch.cos(torch.arange(y.numel()).view(y.shape))).sum() for y in outputs]
