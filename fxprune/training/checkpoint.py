"""The state of training besides the program, as plain data, so that another process can resume it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from fxprune.graph.program import Program
from fxprune.random_state import random_state, set_random_state
from fxprune.training.ema import Ema
from fxprune.training.errors import TrainingError

Tensor = torch.Tensor
State = dict[str, Any]
STRANGER = ""


def write_state(
    program: Program, optimizer: Optimizer, ema: Ema | None, scaler: Any, scheduler: Any
) -> State:
    """Returns the state of everything except the program, with parameters by name, in the order of the groups."""
    name_of = {p: n for n, p in reversed(list(program.module.named_parameters()))}
    parts = {"ema": ema, "scaler": scaler, "scheduler": scheduler}
    return {
        "optimizer": optimizer.state_dict(),
        "names": [[name_of.get(p, STRANGER) for p in g["params"]] for g in optimizer.param_groups],
        "random": random_state(),
        **{name: _written(part) for name, part in parts.items() if part is not None},
    }


def _written(part: Any) -> Any:
    if isinstance(part, AveragedModel) or not isinstance(part, Mapping):
        return part.state_dict()
    return dict(part)


def read_state(
    state: Mapping[str, Any],
    program: Program,
    optimizer: Optimizer,
    ema: Ema | None,
    scaler: Any,
    scheduler: Any,
) -> None:
    """Restores the state that `write_state` returned.

    The groups of the optimizer are rebuilt from the names of the parameters, so that each state is assigned
    to its parameter whatever the order in which the optimizer was created.

    Raises:
        TrainingError: names, parts or sizes differ; nothing has changed.
    """
    parts = {"ema": ema, "scaler": scaler, "scheduler": scheduler}
    for name, part in parts.items():
        if (part is not None) != (name in state):
            raise TrainingError(
                f"the state has {'a' if name in state else 'no'} part {name!r}",
                do=f"create the Shrinker with the same parts as when the state was saved: {name}=...",
            )
    groups = _groups(state["names"], program, optimizer)
    _check_sizes(groups, state["optimizer"])
    _check_ema(ema, state.get("ema"))
    held, optimizer.param_groups = (
        optimizer.param_groups,
        [{**optimizer.defaults, "params": params} for params in groups],
    )
    try:
        optimizer.load_state_dict(state["optimizer"])
    except Exception:
        optimizer.param_groups = held
        raise
    for name, part in parts.items():
        if part is not None:
            _read(part, state[name])
    set_random_state(state["random"])


def _read(part: Any, value: Any) -> None:
    if isinstance(part, AveragedModel) or not isinstance(part, Mapping):
        part.load_state_dict(value)
        return
    part.clear()  # type: ignore[attr-defined]
    part.update(value)  # type: ignore[attr-defined]


def _groups(names: list[list[str]], program: Program, optimizer: Optimizer) -> list[list[Tensor]]:
    known: dict[str, Tensor] = dict(program.module.named_parameters())
    own = set(known.values())
    strangers = [p for g in optimizer.param_groups for p in g["params"] if p not in own]
    wanted = [n for group in names for n in group]
    missing = [n for n in wanted if n != STRANGER and n not in known]
    if missing or wanted.count(STRANGER) != len(strangers):
        raise TrainingError(
            "the state belongs to another network",
            where=", ".join(missing[:4]),
            why="the program has no such parameter"
            if missing
            else "the optimizer has a different number of parameters that do not belong to the program",
            do="load the program that was saved with the state: fp.load(directory)",
        )
    rest = iter(strangers)
    return [[known[n] if n != STRANGER else next(rest) for n in group] for group in names]


def _check_sizes(groups: list[list[Tensor]], saved: Mapping[str, Any]) -> None:
    """Refuses states whose shapes do not fit their parameters."""
    flat = [p for params in groups for p in params]
    for number, entries in saved["state"].items():
        for key, value in entries.items():
            if not isinstance(value, Tensor) or value.dim() != flat[number].dim():
                continue
            sizes = zip(value.shape, flat[number].shape, strict=True)
            if any(a not in (1, b) for a, b in sizes):
                raise TrainingError(
                    f"the state {key!r} has shape {list(value.shape)}, but its parameter {list(flat[number].shape)}",
                    do="load the program that was saved with the state: fp.load(directory)",
                )


def _check_ema(ema: Any, saved: Any) -> None:
    if not isinstance(ema, AveragedModel):
        return
    mine = {n: t.shape for n, t in ema.state_dict().items()}
    theirs = {n: t.shape for n, t in saved.items()}
    if mine != theirs:
        raise TrainingError(
            "the averaged weights in the state belong to another network",
            where=", ".join(
                sorted(n for n in {*mine, *theirs} if mine.get(n) != theirs.get(n))[:4]
            ),
            do="create the AveragedModel from the program that was saved with the state",
        )
