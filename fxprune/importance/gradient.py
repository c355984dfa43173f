"""Criteria computed from the gradient of a loss with respect to weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from fxprune.errors import ScoreError
from fxprune.importance.table import Evidence, criterion


@criterion("taylor", needs="loss", normalise="cost")
def taylor(evidence: Evidence, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
    """First-order Taylor expansion: |w * dL/dw|, summed over the losses; of complex weights, its real part.

    This is equation 8 of Molchanov et al. (arXiv 1906.10771) with the absolute value in place of the
    square. Needs a loss.
    """
    found = _gathered(evidence, "taylor", lambda w, g: change(w, g).abs())
    return found.get(name)


def change(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Returns by how much the loss falls, to first order, when a weight becomes zero."""
    return (weight * gradient.conj()).real if weight.is_complex() else weight * gradient


def no_loss(name: str) -> ScoreError:
    """What to raise where a criterion has no loss."""
    return ScoreError(
        f"the criterion {name!r} needs a loss",
        do=f'pass data=fp.Calibration(batches, loss=...), or fp.Importance("{name}", loss=lambda module: ...)',
    )


def not_finite(what: str, name: str) -> ScoreError:
    """What to raise where a criterion meets NaN or infinity."""
    return ScoreError(
        f"{what} is not finite",
        where=f"criterion {name!r}",
        do="check the data and the weights for NaN and infinity",
    )


def require_gradients(evidence: Evidence, name: str) -> None:
    """Refuses a network whose weights are read as they are needed: no gradient goes through it.

    Raises:
        ScoreError: a tensor is on the meta device.
    """
    if any(t.is_meta for t in evidence.program.tensors().values()):
        raise ScoreError(
            f"the criterion {name!r} needs gradients",
            why="the weights are not in memory",
            do='choose one that goes forward only: "wanda" or "activation" with data, "lamp" or "magnitude" without',
        )


def _gathered(
    evidence: Evidence, key: str, saliency: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    if key not in evidence.gathered:
        evidence.gathered[key] = _accumulate(evidence, key, saliency)
    return evidence.gathered[key]


def _accumulate(
    evidence: Evidence, key: str, saliency: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Sums the saliency of every parameter over the losses; the `grad` of the user's parameters does not change."""
    if evidence.losses is None:
        raise no_loss(key)
    require_gradients(evidence, key)
    parameters = {n: p for n, p in evidence.program.module.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p.real) for n, p in parameters.items()}
    with torch.enable_grad():
        for loss in evidence.losses(evidence.program.module):
            if not torch.isfinite(loss).all():
                raise not_finite("the loss", key)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
                if gradient is not None:
                    total[name] += saliency(parameter.detach(), gradient)
    return total
