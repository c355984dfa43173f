"""Units go by the criteria of Torch-Pruning (Fang et al., arXiv 2301.12900), down to the same share of the MACs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
import torch_pruning as tp
from torch import nn
from torch.utils import _pytree as pytree

import fxprune as fp
from benchmarks.peer import last_layers
from benchmarks.quality.real import Real
from fxprune.cost import node_macs

PREFIX = "Torch-Pruning "
CRITERIA = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "bn-scale": tp.importance.BNScaleImportance,
    "lamp": tp.importance.LAMPImportance,
    "taylor": tp.importance.GroupTaylorImportance,
    "hessian": tp.importance.GroupHessianImportance,
}
HALVINGS = 7


class NothingRemovedError(Exception):
    """Its pruner leaves the network as it is."""


def pruned(real: Real, criterion: str, keep: float) -> Callable[[], fp.Program]:
    """What makes the small network: global pruning in one step; halving finds the ratio of units for the MACs."""

    def make() -> fp.Program:
        whole = _macs(fp.capture(real.model, real.example))
        low, high = 0.0, 1.0
        best: fp.Program | None = None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            try:
                found = fp.capture(_pruned(real, criterion, middle), real.example)
            except Exception:  # a layer has lost all of its units, or does not fit any more
                if best is None and high - low < 0.05:
                    raise
                high = middle
                continue
            if _macs(found) <= keep * whole:
                best, high = found, middle
            else:
                low = middle
        if best is None:
            raise NothingRemovedError(f"{keep:g} of the MACs was not reached at any ratio")
        return best

    return make


def _pruned(real: Real, criterion: str, ratio: float) -> nn.Module:
    """Its pruner in the form of its own examples; layers that must stay are ignored."""
    model = copy.deepcopy(real.model)
    importance = CRITERIA[criterion]()
    if criterion == "taylor":
        for loss in real.data.losses(model):
            torch.autograd.backward(loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            real.example,
            importance=importance,
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=_whole(real, model),
            output_transform=pytree.tree_leaves,
        )
        if criterion == "hessian":
            for loss in real.data.losses(model):
                model.zero_grad()
                torch.autograd.backward(loss)
                importance.accumulate_grad(model)
        pruner.step()
    model.zero_grad()
    return model.eval()


def _whole(real: Real, model: nn.Module) -> list[nn.Module]:
    """The layers that stay: those that make the outputs, as many as tensors come out, and those of spelled widths."""
    with torch.no_grad():
        found = pytree.tree_leaves(model(real.example))
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    ends = last_layers(model) if len(found) == 1 else layers[-len(found) :]
    return [*ends, *(model.get_submodule(name) for name in real.spelled)]


def _macs(program: fp.Program) -> int:
    return sum(node_macs(program).values())
