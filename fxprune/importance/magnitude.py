"""Criteria computed from weights alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from fxprune.graph.operands import is_operator
from fxprune.importance.table import Evidence, criterion

NORMS = (
    "aten::batch_norm",
    "aten::layer_norm",
    "aten::group_norm",
    "aten::instance_norm",
    "aten::rms_norm",
)


@criterion("magnitude", "l2", finish=np.sqrt)
def l2(evidence: Evidence, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """L2 norm of the weights that a unit cuts: the common variant of the L1 criterion."""
    return tensor.abs().square()


@criterion("l1")
def l1(evidence: Evidence, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """L1 norm of the weights that a unit cuts (Li et al., arXiv 1608.08710, section 3.1)."""
    return tensor.abs()


@criterion("bn-scale")
def norm_scale(evidence: Evidence, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
    """Absolute scale of a unit in a norm layer (Network Slimming: Liu et al., arXiv 1708.06519).

    Other tensors do not contribute.
    """
    if "scales" not in evidence.gathered:
        evidence.gathered["scales"] = {n: torch.empty(0) for n in _scales(evidence)}
    return tensor.abs() if name in evidence.gathered["scales"] else None


def _scales(evidence: Evidence) -> list[str]:
    norms = [n for n in evidence.program.nodes if is_operator(n) and n.target._schema.name in NORMS]  # type: ignore[union-attr]
    weights = [
        n.args[
            2
            if "layer" in str(n.target) or "group" in str(n.target) or "rms" in str(n.target)
            else 1
        ]
        for n in norms
        if len(n.args) > 2 or "batch" in str(n.target)
    ]
    return [str(w.target) for w in weights if isinstance(w, fx.Node) and w.op == "get_attr"]


@criterion("lamp", normalise="cost")
def lamp(evidence: Evidence, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Layer-adaptive magnitude (LAMP: Lee et al., arXiv 2010.07611).

    The score of a weight is w^2, divided by the sum of v^2 over all weights v of the same tensor with
    |v| >= |w|.
    """
    flat = tensor.abs().square().flatten()
    ordered, index = flat.sort()
    larger = ordered.flip(0).cumsum(0).flip(0)
    out = torch.empty_like(flat)
    out[index] = ordered / larger.clamp(min=torch.finfo(flat.dtype).tiny)
    return out.view_as(tensor)
