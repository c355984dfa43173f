"""Prunes weights by the entropy of the activations behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fxprune.graph.program import Program
from fxprune_passes.methods.activations.entropy_layers import EntropyLayer
from fxprune_passes.methods.weights.weight_budgets import irrelevance_ratios, split_budget
from fxprune_passes.methods.weights.weight_masks import WeightMasks


def prune_by_entropy(
    program: Program,
    masks: WeightMasks,
    layers: Sequence[EntropyLayer],
    entropies: Mapping[str, float],
    zeta: float,
    most: float,
) -> dict[str, int]:
    """Prunes a share of all weights that are left, more of them where the entropy is low (arXiv 2308.06619).

    With H_l the entropy of the activations behind the weights W_l,

        I_l = H_l * mean of |w| over the w in W_l that are not 0       irrelevance
        R_l = sum_k I_k / I_l                                          infinite where I_l is 0
        m_l = zeta * sum_k |W_k|_0 * softmax(R)_l                      capped; the excess goes to the others

    weights: the m_l smallest |w| of W_l go to 0.

    Args:
        program: the network in training.
        masks: its masks, which keep the pruned weights at 0.
        layers: the activations with the weights before them; those without weights are left out.
        entropies: H_l in bits by the path of the observer.
        zeta: the share of the weights of these layers that are left.
        most: the largest share of the weights of one layer.

    Returns:
        The number of pruned weights m_l by the path of the observer.
    """
    layers = [layer for layer in layers if layer.weights]
    left = [count_left(program, layer.weights) for layer in layers]
    ratios = irrelevance_ratios([_irrelevance(program, one, entropies[one.path]) for one in layers])
    caps = [int(most * count) for count in left]
    parts = split_budget(round(zeta * sum(left)), ratios, caps)
    for layer, part in zip(layers, parts, strict=True):
        masks.prune(layer.weights, part)
    return {layer.path: part for layer, part in zip(layers, parts, strict=True)}


def _irrelevance(program: Program, layer: EntropyLayer, entropy: float) -> float:
    tensors = program.tensors()
    total = sum(float(tensors[n].detach().abs().sum(dtype=torch.float64)) for n in layer.weights)
    return entropy * total / max(1, count_left(program, layer.weights))


def count_left(program: Program, names: Sequence[str]) -> int:
    """The number of nonzero elements among some weights that the program still has."""
    tensors = program.tensors()
    return sum(int(tensors[name].count_nonzero()) for name in names if name in tensors)
