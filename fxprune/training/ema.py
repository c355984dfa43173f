"""Shrinks averaged copies of the weights along with the weights."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fxprune.graph.program import Program
from fxprune.shrink.tensors import slice_axes
from fxprune.training.correspondence import Correspondence
from fxprune.training.errors import TrainingError
from fxprune.training.modules import named_tensors, twin

Tensor = torch.Tensor
Ema = AveragedModel | MutableMapping[str, Tensor]


def move_ema(ema: Ema, after: Program, tensors: Correspondence) -> Callable[[], None]:
    """Computes the averages of the smaller program; nothing changes until the returned function is called.

    An AveragedModel receives the smaller network in place of its own, a mapping receives new entries; both
    remain the same objects.

    Args:
        ema: an AveragedModel of the module before, or tensors by the names of its parameters and buffers.
        after: the smaller program.
        tensors: the correspondence between the tensors of both programs.

    Raises:
        TrainingError: an average is missing or has a wrong shape, or a pass recomputed its weight.
    """
    if isinstance(ema, AveragedModel):
        averaged = _averages(dict(named_tensors(ema.module)), tensors, every=True)
        return _put_in_place(ema, after, tensors, averaged)
    return _put_in_place(ema, after, tensors, _averages(ema, tensors, every=False))


def restart_ema(ema: Ema, after: Program, tensors: Correspondence) -> Callable[[], None]:
    """Computes averages that start anew from the weights of another program, as `move_ema` does."""
    copies = {t: _like(t, t.detach().clone()) for t in tensors.after.values()}
    fresh = {
        name: copies[t]
        for name, t in tensors.after.items()
        if isinstance(ema, AveragedModel)
        or name in ema
        or (isinstance(t, nn.Parameter) and t.requires_grad)
    }
    return _put_in_place(ema, after, tensors, fresh)


def _put_in_place(
    ema: Ema, after: Program, tensors: Correspondence, averages: dict[str, Tensor]
) -> Callable[[], None]:
    if isinstance(ema, AveragedModel):
        module = twin(after, averages, training=ema.module.training)

        def commit() -> None:
            ema.module = module

        return commit

    def commit_mapping() -> None:
        for name in [n for n in ema if n in tensors.before and n not in averages]:
            del ema[name]
        ema.update(averages)

    return commit_mapping


def _averages(
    old: MutableMapping[str, Tensor], tensors: Correspondence, *, every: bool
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    made: dict[Tensor, Tensor] = {}
    for name, new in tensors.after.items():
        if name in old and name in tensors.before:
            source = old[name]
            if source not in made:
                made[source] = _average(name, source, tensors)
            found[name] = made[source]
        elif every and name in tensors.before:
            raise TrainingError(
                "the averaged weights belong to another network",
                where=name,
                why="they have no such tensor",
                do="pass an AveragedModel of the module that is trained",
            )
        elif every or (isinstance(new, nn.Parameter) and new.requires_grad):
            found[name] = _like(new, new.detach().clone())
    return found


def _average(name: str, source: Tensor, tensors: Correspondence) -> Tensor:
    before, after = tensors.before[name], tensors.after[name]
    if source.shape != before.shape:
        raise TrainingError(
            f"an average has shape {list(source.shape)}, but its tensor {list(before.shape)}",
            where=name,
            do="pass the averages of the module that is trained",
        )
    if name in tensors.rewritten and isinstance(after, nn.Parameter):
        raise TrainingError(
            "a pass recomputed a weight, and its average cannot be updated accordingly",
            where=name,
            do="leave that pass out during training, or run it after training",
        )
    cut = tensors.cut(name)
    return _like(source, slice_axes(source.detach(), cut)) if cut else source


def _like(source: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, source.requires_grad) if isinstance(source, nn.Parameter) else value
