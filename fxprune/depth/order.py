"""In which order layers go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from fxprune.calibration import Calibration
from fxprune.depth.layer import Layer
from fxprune.depth.scores import (
    DepthImportance,
    Scores,
    activation_entropy,
    block_influence,
    by_chance,
    from_the_end,
    weight_size,
)
from fxprune.graph.program import Program
from fxprune.remark import Remark
from fxprune.sensitivity.forked import Branchless, Change, losses, own_precision

Order = Iterator[tuple[Layer, float]]


def removal_order(
    program: Program,
    layers: Sequence[Layer],
    importance: DepthImportance,
    data: Calibration | None,
    seed: int,
    *,
    progress: bool = False,
) -> tuple[Order, list[Remark]]:
    """The layers with their scores in the order in which they go, worked out as far as it is read; and remarks.

    Args:
        program: the network.
        layers: of it.
        importance: see `prune_layers`.
        data: batches, where the score reads them.
        seed: of random scores.
        progress: whether a bar is shown on stderr while losses are measured.
    """
    if importance == "loss":
        assert data is not None
        return greedy(program, layers, data, progress=progress), []
    scores = _scores(program, layers, importance, data, seed)
    known = [layer for layer in layers if layer.path in scores]
    known.sort(key=lambda layer: scores[layer.path])
    remarks = [_unscored(x.path, importance) for x in layers if x.path not in scores]
    return ((layer, scores[layer.path]) for layer in known), remarks


def greedy(
    program: Program, layers: Sequence[Layer], data: Calibration, *, progress: bool = False
) -> Order:
    """Yields the layer without which the loss is lowest, then the one without which too, and so on; with that loss.

    Every number takes one forward of each batch, from the first branch of the layer on.
    """
    dtype = own_precision(program)
    place = {node: i for i, node in enumerate(program.nodes)}
    gone: list[Layer] = []
    left = list(layers)
    while left:
        off = [n for layer in gone for n in layer.branches]
        changes = [
            Change(
                min(layer.branches, key=place.__getitem__),
                partial(Branchless, program, dtype, (*off, *layer.branches)),
            )
            for layer in left
        ]
        _, found = losses(
            program, data, changes, partial(Branchless, program, dtype, off), progress=progress
        )
        best = min(range(len(left)), key=found.__getitem__)
        gone.append(left.pop(best))
        yield gone[-1], found[best]


def _scores(
    program: Program,
    layers: Sequence[Layer],
    importance: DepthImportance,
    data: Calibration | None,
    seed: int,
) -> Scores:
    with_data: dict[str, Callable[[Program, Sequence[Layer], Calibration], Scores]] = {
        "block-influence": block_influence,
        "entropy": activation_entropy,
    }
    if importance in with_data:
        assert data is not None
        return with_data[importance](program, layers, data)
    if importance == "magnitude":
        return weight_size(program, layers)
    return by_chance(layers, seed) if importance == "random" else from_the_end(layers)


def _unscored(path: str, importance: str) -> Remark:
    why = {
        "block-influence": "what goes in has another shape than what comes out",
        "entropy": "it has no activation functions",
        "magnitude": "it has no weights of two axes",
    }[importance]
    return Remark("missed", "layers.unscored", path, "the layer stays", why)
