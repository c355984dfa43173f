"""How much each layer matters; the lowest score goes first."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import fx

from fxprune.analysis.axes import Axes
from fxprune.analysis.cache import solved
from fxprune.calibration import Calibration
from fxprune.calibration.calibration import device_of
from fxprune.depth.layer import Layer
from fxprune.errors import OptionError
from fxprune.graph.evaluate import Evaluator
from fxprune.graph.program import Program
from fxprune.observe import OnFraction
from fxprune.sensitivity.forked import own_precision
from fxprune.structure.activations import find_activations

Tensor = torch.Tensor
DepthImportance = Literal["block-influence", "loss", "entropy", "magnitude", "random", "last"]
Scores = dict[str, float]
Watch = Callable[[fx.Node, Any], None]
NAMES = get_args(DepthImportance)
WITH_DATA = ("block-influence", "loss", "entropy")


def block_influence(program: Program, layers: Sequence[Layer], data: Calibration) -> Scores:
    """1 less the mean cosine of what goes into a layer and what comes out, over samples and positions.

    Block Influence of "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (arXiv
    2403.03853), equation 1. What comes out is the last addition of the layer. A layer that changes the shape has none.
    """
    axes = solved(program)
    sums, counts = dict.fromkeys(range(len(layers)), 0.0), dict.fromkeys(range(len(layers)), 0)
    values: dict[fx.Node, Tensor] = {}
    wanted = {layer.entry for layer in layers}
    ends: dict[fx.Node, list[int]] = {}
    for i, layer in enumerate(layers):
        ends.setdefault(layer.end, []).append(i)

    def watch(node: fx.Node, value: Any) -> None:
        if node in wanted:
            values[node] = value
        for i in ends.get(node, ()):
            before = values[layers[i].entry]
            if before.shape == value.shape:
                axis = feature_axis(axes, node, value)
                cosine = torch.cosine_similarity(before.double(), value.double(), dim=axis)
                sums[i] += float(cosine.sum())
                counts[i] += cosine.numel()

    _run(program, data, watch, values.clear)
    return {layers[i].path: 1 - sums[i] / n for i, n in counts.items() if n}


def activation_entropy(program: Program, layers: Sequence[Layer], data: Calibration) -> Scores:
    """The mean entropy, in bits, of the signs of the pre-activations in a layer's branches.

    With p the fraction of the pre-activations of a neuron that are above 0, over samples and positions, it is
    -p log2 p - (1 - p) log2 (1 - p), and its mean is over all neurons ("Can Unstructured Pruning Reduce the Depth in
    Deep Neural Networks?", arXiv 2308.06619). An activation of low entropy is nearly linear. A layer without
    activations has none.
    """
    axes = solved(program)
    owner = {n: layer.path for layer in layers for n in layer.nodes}
    sources = [(a.source, owner[a.node]) for a in find_activations(program) if a.node in owner]
    counters: dict[fx.Node, OnFraction] = {}
    wanted = {source for source, _ in sources}

    def watch(node: fx.Node, value: Any) -> None:
        if node in wanted:
            axis = feature_axis(axes, node, value) % value.dim()
            if node not in counters:
                counters[node] = OnFraction(value.shape[axis], value.device)
            counters[node](value, axis)

    _run(program, data, watch, lambda: None)
    bits: dict[str, list[Tensor]] = {}
    for source, path in sources:
        bits.setdefault(path, []).append(counters[source].entropy().reshape(-1))
    return {path: float(torch.cat(found).mean()) for path, found in bits.items()}


def weight_size(program: Program, layers: Sequence[Layer]) -> Scores:
    """The root mean square of the weights of two or more axes that go with a layer; none where it has no such."""
    tensors = program.tensors()
    found: Scores = {}
    for layer in layers:
        names = [n for n in layer.parameters if tensors[n].dim() > 1]
        if names:
            squares = sum(_square_sum(program.loaded(n, tensors[n])) for n in names)
            found[layer.path] = (squares / sum(tensors[n].numel() for n in names)) ** 0.5
    return found


def _square_sum(weight: Tensor) -> float:
    return float(weight.detach().double().square().sum())


def by_chance(layers: Sequence[Layer], seed: int) -> Scores:
    """Random numbers."""
    draw = random.Random(seed)
    return {layer.path: draw.random() for layer in layers}


def from_the_end(layers: Sequence[Layer]) -> Scores:
    """How many layers come after each: the last one goes first."""
    return {layer.path: float(len(layers) - 1 - i) for i, layer in enumerate(layers)}


def check_importance(importance: object, data: object) -> None:
    """Refuses an unknown score, or one that reads data where there is none.

    Raises:
        OptionError: see above.
    """
    if importance not in NAMES:
        raise OptionError(
            f"there is no score {importance!r} of layers", do=f"choose one of {', '.join(NAMES)}"
        )
    if importance in WITH_DATA and data is None:
        raise OptionError(
            f"importance={importance!r} reads data, and there is none",
            do='pass data=batches, or importance="last" (the deepest first), "magnitude" or "random"',
        )


def feature_axis(axes: Axes, node: fx.Node, value: Tensor) -> int:
    """The axis of channels or features: the one with units, if there is one such; else 1 of images, or the last."""
    labels = axes.nodes.get(node)
    if isinstance(labels, tuple | list):
        found = [i for i, x in enumerate(labels) if any(c.any() for c in getattr(x, "columns", ()))]
        if len(found) == 1:
            return found[0]
    return 1 if value.dim() > 3 else -1


def _run(program: Program, data: Calibration, watch: Watch, forget: Callable[[], None]) -> None:
    """Runs all batches, and shows the value of every node."""
    for args, kwargs in data.calls(device_of(program.module)):
        run = Evaluator(program, own_precision(program))
        run.observe = watch
        run.evaluate(args, kwargs)
        forget()
