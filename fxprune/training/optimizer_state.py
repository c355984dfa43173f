"""Shrinks the state of an optimizer, by the shapes of its tensors and the identity of its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch.optim import Optimizer

from fxprune.shrink.tensors import slice_axes
from fxprune.training.correspondence import Correspondence, Cut, Successor
from fxprune.training.errors import TrainingError

Tensor = torch.Tensor
Shape = tuple[int, ...]

# States of fewer axes than their parameter, by name: the axis that was averaged away. A square parameter
# does not tell by its shape (Adafactor, Shazeer and Stern, arXiv 1804.04235, as transformers and fairseq
# name its factors; torch's own keep the axis with length 1).
AVERAGED = {"exp_avg_sq_row": -1, "exp_avg_sq_col": -2}

_OWN = ("state", "param_groups", "defaults")


@dataclass(frozen=True, eq=False)
class OptimizerMove:
    """The parameters and states of an optimizer after a shrinking, computed but not yet in place.

    Attributes:
        optimizer: the optimizer.
        groups: the parameters of each group, in order.
        names: the `param_names` of each group; None for a group without.
        state: the state of each parameter.
        left: the names of parameters that leave the optimizer.
        joined: the names of parameters that join it.
    """

    optimizer: Optimizer
    groups: tuple[list[Tensor], ...]
    names: tuple[list[str] | None, ...]
    state: Mapping[Tensor, Any]
    left: tuple[str, ...]
    joined: tuple[str, ...]

    def commit(self) -> None:
        """Puts them in place; the optimizer, its groups and their lists remain the same objects."""
        for group, params, names in zip(
            self.optimizer.param_groups, self.groups, self.names, strict=True
        ):
            group["params"][:] = params
            if names is not None:
                group["param_names"][:] = names
        self.optimizer.state.clear()
        self.optimizer.state.update(self.state)


def move_optimizer(optimizer: Optimizer, tensors: Correspondence) -> OptimizerMove:
    """Computes the contents of an optimizer after a shrinking; changes nothing.

    Parameters keep their group and their order, with their state sliced in the same way; removed parameters
    leave. A new parameter joins the group of its module's weight, or of the enclosing module, without a
    state; a parameter of a gate stays outside. If a pass recomputed the values of a parameter, its state is
    reset. Parameters of the optimizer that do not belong to the program stay as they are.

    Raises:
        TrainingError: a state cannot be sliced, or a parameter would be in no group or in two.
    """
    check_optimizer(optimizer)
    after = tensors.successors()
    groups: list[list[Tensor]] = []
    names: list[list[str] | None] = []
    state: dict[Tensor, Any] = {}
    left: list[str] = []
    for group in optimizer.param_groups:
        params, spelled = list[Tensor](), list[str]()
        given = group.get("param_names")
        for i, old in enumerate(group["params"]):
            successor = after.get(old)
            new = old if successor is None else successor.tensor
            if new is None:
                left += [successor.name] if successor else []
                continue
            params.append(new)
            spelled += [given[i]] if given else []
            if old in optimizer.state:
                state.update(_moved(old, new, successor, optimizer.state[old], tensors))
        groups.append(params)
        names.append(spelled if given is not None else None)
    joined = _join(tensors, groups, names)
    _check_owners(optimizer, tensors, after, groups)
    _keep_strangers(optimizer, state, after)
    return OptimizerMove(optimizer, tuple(groups), tuple(names), state, tuple(left), tuple(joined))


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuses an optimizer that keeps parameters or states where they cannot be found.

    Raises:
        TrainingError: the optimizer is LBFGS, or keeps parameters outside `param_groups` and `state`.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TrainingError(
            "the state of LBFGS cannot be shrunk",
            why="its history is one flat vector of all parameters, without their axes",
            do="create a new LBFGS after shrinking, or train with another optimizer",
        )
    owned = {p for group in optimizer.param_groups for p in group["params"]}
    for name, value in vars(optimizer).items():
        if name not in _OWN and any(
            isinstance(x, Optimizer) or (isinstance(x, Tensor) and x in owned)
            for x in _inside(value)
        ):
            raise TrainingError(
                f"{type(optimizer).__name__} keeps further parameters, or another optimizer, in `{name}`",
                why="only parameters in `param_groups` and `state` can be shrunk",
                do="shrink with a plain optimizer, and create the wrapping optimizer again for the smaller network",
            )


def _inside(value: Any, depth: int = 3) -> Iterator[Any]:
    yield value
    if depth and isinstance(value, Mapping):
        for pair in list(value.items()):
            yield from _inside(pair[0], depth - 1)
            yield from _inside(pair[1], depth - 1)
    elif depth and isinstance(value, list | tuple | set | frozenset):
        for x in value:
            yield from _inside(x, depth - 1)


def _moved(
    old: Tensor, new: Tensor, successor: Successor | None, entries: Any, tensors: Correspondence
) -> dict[Tensor, Any]:
    """Returns the state of one parameter, by its successor; empty if its values were recomputed."""
    if successor is None:
        return {old: entries}
    if successor.name in tensors.rewritten:
        return {}
    return {new: shrink_state(entries, tuple(old.shape), successor.cut, successor.name)}


def shrink_state(entries: Any, shape: Shape, cut: Cut, name: str) -> Any:
    """Slices the state of a parameter in the same way as the parameter.

    Args:
        entries: state name -> value, as an optimizer keeps it for one parameter.
        shape: the shape of the parameter before.
        cut: the kept positions, by axis.
        name: the name of the parameter, for errors.

    Raises:
        TrainingError: the axes of a tensor in the state cannot be identified with those of the parameter.
    """
    if not cut:
        return entries
    return {
        key: _shrink_value(value, shape, cut, str(key), f"state {key!r} of {name}")
        for key, value in entries.items()
    }


def _shrink_value(value: Any, shape: Shape, cut: Cut, key: str, where: str) -> Any:
    if isinstance(value, Tensor):
        axes = _axes(tuple(value.shape), shape, cut, key, where)
        mine = {i: cut[axis] for i, axis in enumerate(axes) if axis in cut and value.shape[i] > 1}
        return slice_axes(value, mine) if mine else value
    if any(isinstance(x, Tensor) and x.dim() for x in _inside(value)):
        raise TrainingError(
            f"a state of type {type(value).__name__} holds tensors",
            where=where,
            why="only tensors whose axes correspond to those of their parameter can be shrunk",
            do="use another optimizer, or create a new one after shrinking",
        )
    return value


def _axes(mine: Shape, shape: Shape, cut: Cut, key: str, where: str) -> Sequence[int]:
    """Returns the axis of the parameter that each axis of a state corresponds to."""
    if _broadcasts(mine, shape):
        return range(len(shape))
    if all(n == 1 for n in mine):
        return [-1] * len(mine)
    if key in AVERAGED and len(shape) == len(mine) + 1:
        axes = [i for i in range(len(shape)) if i != AVERAGED[key] % len(shape)]
        if _broadcasts(mine, tuple(shape[i] for i in axes)):
            return axes
    ways = [
        axes
        for axes in combinations(range(len(shape)), len(mine))
        if _broadcasts(mine, tuple(shape[i] for i in axes))
    ]
    if not ways or len({tuple(a if a in cut else -1 for a in axes) for axes in ways}) > 1:
        raise TrainingError(
            f"a state has shape {list(mine)}, but its parameter {list(shape)}",
            where=where,
            why="its axes could correspond to several of the parameter's axes"
            if ways
            else "its axes correspond to none of the parameter's axes",
            do="use another optimizer, or create a new one after shrinking",
        )
    return ways[0]


def _broadcasts(mine: Shape, shape: Shape) -> bool:
    return len(mine) == len(shape) and all(a in (1, b) for a, b in zip(mine, shape, strict=True))


def _join(
    tensors: Correspondence, groups: list[list[Tensor]], names: list[list[str] | None]
) -> list[str]:
    """Adds new parameters to the groups of the weights of their modules, or of the enclosing modules."""
    group_of = {p: i for i, params in enumerate(groups) for p in params}
    joined: list[str] = []
    for name in tensors.added:
        new = tensors.after[name]
        if not isinstance(new, torch.nn.Parameter) or name in tensors.gates or new in group_of:
            continue
        home = name.rpartition(".")[0]
        at = next(
            (
                group_of[t]
                for path in (home, home.rpartition(".")[0])
                for n, t in tensors.after.items()
                if n.rpartition(".")[0] == path and t in group_of
            ),
            None,
        )
        if at is None:
            if not new.requires_grad:
                continue
            raise TrainingError(
                "a pass created a parameter that belongs to no group of the optimizer",
                where=name,
                why=f"the optimizer holds no parameter of {home or 'the network itself'}",
                do="leave that pass out during training, or run it after training",
            )
        groups[at].append(new)
        group_of[new] = at
        if (known := names[at]) is not None:
            known.append(name)
        joined.append(name)
    return joined


def _check_owners(
    optimizer: Optimizer,
    tensors: Correspondence,
    after: Mapping[Tensor, Successor],
    groups: Sequence[Sequence[Tensor]],
) -> None:
    """Checks that every live parameter that was in a group is in exactly one, and that removed ones are in none."""
    held = [p for params in groups for p in params]
    owned = set(held)
    live = set(tensors.after.values())
    twice = len(held) - len(owned)
    before = {p for group in optimizer.param_groups for p in group["params"]}
    lost = [s.name for old, s in after.items() if old in before and s.tensor not in {*owned, None}]
    gone = [s.name for old, s in after.items() if old in owned and old not in live]
    if twice or lost or gone:
        raise TrainingError(
            "a parameter would not belong to exactly one group of the optimizer",
            where=", ".join([*lost, *gone]) or f"{twice} parameters in two groups",
            do="this is a defect of fxprune: please report it",
        )


def _keep_strangers(
    optimizer: Optimizer, state: dict[Tensor, Any], after: Mapping[Tensor, Successor]
) -> None:
    """Keeps states of parameters that are in no group, unless they belong to the program."""
    owned = {p for group in optimizer.param_groups for p in group["params"]}
    for key, entries in optimizer.state.items():
        if key in owned:
            continue
        if isinstance(key, Tensor) and key in after:
            if not entries:  # to look a state up makes an empty one
                continue
            raise TrainingError(
                "the optimizer has a state for a parameter that is in none of its groups",
                where=after[key].name,
                do="remove it from optimizer.state, or add the parameter to a group",
            )
        state[key] = entries
