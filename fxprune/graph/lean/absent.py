"""A branch that does not run: its sum is the shortcut, and what it would have read has gradients of 0."""

from __future__ import annotations

from typing import Any

import torch


class Absent(torch.autograd.Function):
    """Returns the shortcut of a sum whose other operand is multiplied by 0 and was not computed.

    The gradients of its other inputs are zeros, as they are where the branch is computed and multiplied by 0: an
    optimizer does with its parameters what it does with others whose gradient is 0, and replicas of the network on
    other processes find a gradient of every parameter.
    """

    @staticmethod
    def forward(shortcut: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return shortcut.view_as(shortcut)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Any) -> None:
        ctx.others = [(x.detach(), x.is_leaf) for x in inputs[1:]]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = zip(ctx.others, ctx.needs_input_grad[1:], strict=True)
        return gradient, *(_zeros(*x) if asked else None for x, asked in needed)


def _zeros(like: torch.Tensor, is_leaf: bool) -> torch.Tensor:
    """Zeros for a gradient that stays, or one 0 seen everywhere for one that is passed on."""
    return torch.zeros_like(like) if is_leaf else like.new_zeros(()).expand_as(like)


def absent(shortcut: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
    """Returns the shortcut; the other tensors get gradients of 0."""
    asked = [x for x in others if isinstance(x, torch.Tensor) and x.requires_grad]
    if not asked or not torch.is_grad_enabled():
        return shortcut
    found: torch.Tensor = Absent.apply(shortcut, *asked)
    return found
