"""How far the outputs of a smaller network are from those of its teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.utils import _pytree as pytree

from fxprune.errors import OptionError
from fxprune.training.errors import TrainingError

Distance = Literal["squared", "kl"]
_SMALL = 1e-12  # so that an output of zeros, which has no scale, does not divide by zero


def distance_named(name: str, temperature: float) -> Callable[[Any, Any], Tensor]:
    """The distance `[]` of outputs from those of a teacher, tensor by tensor, added up.

    Args:
        name: squared or kl.
        temperature: of the softmax of `kl`.

    Raises:
        OptionError: there is no such distance, or the temperature is not above 0.
    """
    if not temperature > 0:
        raise OptionError(f"temperature is {temperature}", do="it must be above 0")
    each = {"squared": squared, "kl": lambda a, b: divergence(a, b, temperature)}
    if name not in each:
        raise OptionError(
            f"there is no distance {name!r}",
            do=f"choose one of {', '.join(each)}",
            where="distance",
        )
    return lambda found, wanted: _added(each[name], found, wanted)


def squared(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error, relative to the variance of what is wanted: 1 for its mean, 0 for itself."""
    off = (found - wanted).square().mean()
    return off / (wanted.var(correction=0) + _SMALL)


def divergence(found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """The Kullback-Leibler divergence of softened classes, times T^2 (Hinton et al., arXiv 1503.02531, section 2.1).

    Classes are on axis 1, or on the last one of tensors with three axes, as language models have them.
    """
    axis = 1 if found.dim() != 3 else 2
    a, b = ((x / temperature).log_softmax(axis) for x in (found, wanted))
    positions = found.numel() // found.shape[axis]
    return kl_div(a, b, reduction="sum", log_target=True) / positions * temperature**2


def _added(each: Callable[[Tensor, Tensor], Tensor], found: Any, wanted: Any) -> Tensor:
    pairs = list(zip(_numbers(found), _numbers(wanted), strict=False))
    shapes = [[list(t.shape) for t in _numbers(x)] for x in (found, wanted)]
    if not pairs or shapes[0] != shapes[1]:
        raise TrainingError(
            "the outputs are not those of the teacher",
            why=f"they are of the shapes {shapes[0]} and {shapes[1]}",
            do="give the network that was pruned as teacher, or a loss of your own: loss=lambda found, wanted: ...",
        )
    return torch.stack([each(a, b.detach().to(a)) for a, b in pairs]).sum()


def _numbers(outputs: Any) -> list[Tensor]:
    """The tensors of real numbers among outputs, in order."""
    leaves = pytree.tree_leaves(outputs)
    if not isinstance(outputs, Tensor) and hasattr(outputs, "to_tuple"):  # of transformers
        leaves = pytree.tree_leaves(outputs.to_tuple())
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
