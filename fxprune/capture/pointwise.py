"""Whether a function of tensors treats each position alone, found by a test run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fxprune.process.random_state import random_state_kept

Tensor = torch.Tensor
_LENGTH = 6
_TRIALS = 3


def same_shape(x: Tensor, y: Tensor) -> bool:
    """Whether two shapes are the same, symbol by symbol: comparing symbols as numbers could fix them."""
    return [str(n) for n in x.shape] == [str(n) for n in y.shape]


def is_pointwise(call: Callable[..., Any], values: Sequence[Any], output: Tensor) -> bool:
    """Whether some positions alone give the output and the gradients of all positions there, along every axis.

    Args:
        call: the function.
        values: tensors and numbers like those that it is called with; of tensors, only the shape matters.
        output: what it returned for them. The tensors must have its shape, or none.
    """
    tensors = [x for x in values if isinstance(x, Tensor)]
    if not output.dim() or not all(x.dim() == 0 or same_shape(x, output) for x in tensors):
        return False
    shape = [_LENGTH if output.dim() < 5 else 3] * output.dim()
    with random_state_kept():
        given = [_random(x, shape) if isinstance(x, Tensor) else x for x in values]
        factor = torch.randn(shape)
        try:
            whole = _run(call, given, factor)
            for axis in [*range(len(shape))] * _TRIALS:
                index = torch.randperm(shape[axis])[: shape[axis] // 2]
                part = _run(
                    call, [_part(x, index, axis) for x in given], _part(factor, index, axis)
                )
                if not _equal(part, [_part(x, index, axis) for x in whole]):
                    return False
        except Exception:  # what does not run on such inputs is not known to be pointwise
            return False
    return True


def _random(x: Tensor, shape: list[int]) -> Tensor:
    size = shape if x.dim() else []
    if x.is_floating_point() or x.is_complex():
        return 2 * torch.randn(size, dtype=x.dtype)
    return torch.randint(0, 2, size).to(x.dtype)


def _part(x: Any, index: Tensor, axis: int) -> Any:
    return x.index_select(axis, index) if isinstance(x, Tensor) and x.dim() else x


def _run(call: Callable[..., Any], values: list[Any], factor: Tensor) -> list[Tensor]:
    """The output, and the gradients of the inputs that have its shape."""
    given = [x.clone() if isinstance(x, Tensor) else x for x in values]
    floating = [x for x in given if isinstance(x, Tensor) and x.is_floating_point()]
    for x in floating:
        x.requires_grad_()
    with torch.enable_grad():
        output = call(*given)
    shaped = [x for x in floating if x.dim()]
    if not output.requires_grad or not shaped:
        return [output]
    found = torch.autograd.grad(output, shaped, factor.to(output), materialize_grads=True)
    return [output, *found]


def _equal(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
        for a, b in zip(found, wanted, strict=True)
    )
