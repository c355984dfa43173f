"""Criteria from the gradients of a user's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from fxprune.errors import ScoreError
from fxprune.importance.table import Evidence, criterion


@criterion("taylor")
def taylor(evidence: Evidence, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
    """First-order Taylor: |w * dL/dw| (Molchanov et al., arXiv 1906.10771, eq. 8 without the square)."""
    found = _gathered(evidence, "taylor", lambda w, g: (w * g).abs())
    return found.get(name)


@criterion("fisher")
def fisher(evidence: Evidence, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
    """Empirical Fisher: (w * dL/dw)^2, summed over batches (Theis et al., arXiv 1801.05787)."""
    found = _gathered(evidence, "fisher", lambda w, g: (w * g).square())
    return found.get(name)


def _gathered(
    evidence: Evidence, key: str, saliency: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    if key not in evidence.gathered:
        evidence.gathered[key] = _accumulate(evidence, key, saliency)
    return evidence.gathered[key]


def _accumulate(
    evidence: Evidence, key: str, saliency: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The saliency of every parameter, summed over the losses; gradients of the user's model stay as they were."""
    if evidence.loss is None:
        raise ScoreError(
            f"the criterion {key!r} needs a loss",
            do=f'fp.Importance("{key}", loss=lambda module: criterion(module(x), y)); it may yield one per batch',
        )
    parameters = {n: p for n, p in evidence.program.module.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    with torch.enable_grad():
        outcome = evidence.loss(evidence.program.module)
        losses: Iterable[torch.Tensor] = [outcome] if isinstance(outcome, torch.Tensor) else outcome
        for loss in losses:
            if not torch.isfinite(loss).all():
                raise ScoreError(
                    "the loss is not finite",
                    where=f"criterion {key!r}",
                    do="check data and weights",
                )
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
                if gradient is not None:
                    total[name] += saliency(parameter.detach(), gradient)
    return total
