"""Evaluates user-defined measures of a network in eval mode, with equal results on all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fxprune.training import all_reduced

Measure = Callable[[nn.Module], Any]


def in_eval_mode(measure: Measure) -> Callable[[nn.Module], float]:
    """Wraps a measure: it is evaluated in eval mode without gradients and averaged over all processes."""

    def measured(module: nn.Module) -> float:
        training = module.training
        module.eval()
        try:
            with torch.no_grad():
                value = float(measure(module))
        finally:
            module.train(training)
        if not dist.is_initialized():
            return value
        device = next(module.parameters()).device
        total = all_reduced({"value": torch.tensor(value, dtype=torch.float64, device=device)})
        return float(total["value"]) / dist.get_world_size()

    return measured
