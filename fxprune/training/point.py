"""A network in training as it was at one time, to which a shrinker can go back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from fxprune.graph.program import Program
from fxprune.training.correspondence import Correspondence
from fxprune.training.errors import TrainingError
from fxprune.training.optimizer_state import OptimizerMove

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Point:
    """A network in training at one time: see `Shrinker.point` and `Shrinker.go_back`.

    Attributes:
        program: a copy of the program, with its weights.
        groups: the names of its parameters in each group of the optimizer, in order.
    """

    program: Program
    groups: tuple[tuple[str, ...], ...]

    @classmethod
    def of(
        cls,
        program: Program,
        optimizer: Optimizer,
        copied: Callable[[Program], Program] = copy.deepcopy,
    ) -> Point:
        """Copies a program, and notes which of its parameters are in which group of an optimizer."""
        name_of = {p: n for n, p in reversed(list(program.module.named_parameters()))}
        groups = (
            tuple(name_of[p] for p in group["params"] if p in name_of)
            for group in optimizer.param_groups
        )
        return cls(copied(program), tuple(groups))


def return_optimizer(
    optimizer: Optimizer, tensors: Correspondence, groups: Sequence[Sequence[str]]
) -> OptimizerMove:
    """Computes the contents of an optimizer after going back; changes nothing.

    The parameters of the program are in the groups in which they were, without a state: that of now belongs to
    other values. Other parameters of the optimizer, and the options of its groups, stay.

    Args:
        optimizer: the optimizer.
        tensors: the tensors of the program now and of the one that takes its place.
        groups: the names of the latter's parameters in each group.

    Raises:
        TrainingError: the optimizer has another number of groups.
    """
    if len(groups) != len(optimizer.param_groups):
        raise TrainingError(
            f"the optimizer has {len(optimizer.param_groups)} groups and had {len(groups)}",
            do="do not add groups while a method trains",
        )
    own = set(tensors.before.values())
    params: list[list[Tensor]] = []
    spelled: list[list[str] | None] = []
    for group, names in zip(optimizer.param_groups, groups, strict=True):
        given = group.get("param_names")
        others = [i for i, p in enumerate(group["params"]) if p not in own]
        params.append([*(tensors.after[n] for n in names), *(group["params"][i] for i in others)])
        spelled.append(None if given is None else [*names, *(given[i] for i in others)])
    state = {p: s for p, s in optimizer.state.items() if p not in own}
    held = {p for group in optimizer.param_groups for p in group["params"]}
    named = {n for names in groups for n in names}
    left = tuple(n for n, p in tensors.before.items() if p in held and n not in named)
    joined = tuple(sorted(n for n in named if tensors.before.get(n) not in held))
    return OptimizerMove(optimizer, tuple(params), tuple(spelled), state, left, joined)
