"""The state of training besides the program, as plain data, so that another process can resume it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from fxprune.graph.program import Program
from fxprune.process.random_state import random_state, set_random_state
from fxprune.training.ema import Ema
from fxprune.training.errors import TrainingError

Tensor = torch.Tensor
State = dict[str, Any]
STRANGER = ""
_PARTS = ("ema", "scaler", "scheduler")


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
        TrainingError: names, parts or sizes are others, or the state is damaged; nothing has changed.
    """
    parts = {"ema": ema, "scaler": scaler, "scheduler": scheduler}
    _check_form(state)
    for name, part in parts.items():
        if (part is not None) != (name in state):
            raise TrainingError(
                f"the state has {'a' if name in state else 'no'} part {name!r}",
                do=f"create the Shrinker with the same parts as when the state was saved: {name}=...",
            )
    groups = _groups(state["names"], program, optimizer)
    _check_sizes(groups, state["optimizer"])
    _check_ema(ema, state.get("ema"))
    with _undone_after_errors() as undo:
        undo.append(_held(optimizer))
        optimizer.param_groups = [{**optimizer.defaults, "params": params} for params in groups]
        optimizer.load_state_dict(state["optimizer"])
        for name, part in parts.items():
            if part is not None:
                # What a mapping holds is replaced, what a module or a scheduler holds is written to.
                before = _written(part)
                kept = before if isinstance(part, Mapping) else copy.deepcopy(before)
                undo.append(partial(_read, part, kept))
                _read(part, state[name])
        undo.append(partial(set_random_state, random_state()))
        set_random_state(state["random"])


@contextmanager
def _undone_after_errors() -> Iterator[list[Callable[[], object]]]:
    """Calls what was gathered, the last first, where something fails in the block."""
    undo: list[Callable[[], object]] = []
    try:
        yield undo
    except Exception as error:  # parts of any class: anything may come
        for step in reversed(undo):
            step()
        raise TrainingError(
            "the state is damaged, or of other parts; nothing has changed",
            why=f"{type(error).__name__}: {error}"[:240],
            do="take another checkpoint, and give the Shrinker the parts that the state was made of",
        ) from error


def _held(optimizer: Optimizer) -> Callable[[], object]:
    groups, states = optimizer.param_groups, optimizer.state

    def put_back() -> None:
        optimizer.param_groups, optimizer.state = groups, states

    return put_back


def _check_form(state: Any) -> None:
    """Refuses what is no state at all, before anything of it is used."""
    wrong = _wrong_form(state)
    if wrong:
        raise TrainingError(
            f"the state is damaged: {wrong}",
            why="it is not what Shrinker.state_dict gave",
            do="take another checkpoint",
        )


def _wrong_form(state: Any) -> str:
    if not isinstance(state, Mapping):
        return f"it is a {type(state).__name__}"
    if missing := [k for k in ("optimizer", "names", "random") if k not in state]:
        return f"it lacks {', '.join(missing)}"
    names, saved = state["names"], state["optimizer"]
    if not _is_list_of(list, names) or not all(_is_list_of(str, group) for group in names):
        return "names are no lists of names"
    if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), Mapping):
        return "optimizer has no state"
    groups = saved.get("param_groups")
    if not isinstance(groups, list) or not all(_is_group(g) for g in groups):
        return "optimizer has no groups"
    if [len(g["params"]) for g in groups] != [len(g) for g in names]:
        return "names are not those of the optimizer's parameters"
    count = sum(map(len, names))
    if [n for g in groups for n in g["params"]] != list(range(count)):
        return "the optimizer's parameters are not numbered"
    if not all(n in range(count) for n in saved["state"]):
        return "optimizer has the state of a parameter that is in none of its groups"
    strange = [k for k in _PARTS if k in state and not isinstance(state[k], Mapping)]
    return f"{strange[0]} is a {type(state[strange[0]]).__name__}" if strange else ""


def _is_group(value: Any) -> bool:
    return isinstance(value, dict) and _is_list_of(int, value.get("params"))


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) for v in value)


def _read(part: Any, value: Any) -> None:
    if isinstance(part, AveragedModel) or not isinstance(part, Mapping):
        # A scheduler takes whatever it is given for its attributes.
        if strange := value.keys() - part.state_dict().keys():
            raise TypeError(f"{type(part).__name__} has no {sorted(map(str, strange))[0]}")
        part.load_state_dict(value)
        return
    if not all(isinstance(v, Tensor) for v in value.values()):
        raise TypeError("averages that are no tensors")
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
        for key, value in entries.items() if isinstance(entries, Mapping) else ():
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
    theirs = {n: getattr(t, "shape", None) for n, t in saved.items()}
    if mine != theirs:
        raise TrainingError(
            "the averaged weights in the state belong to another network",
            where=", ".join(
                sorted(n for n in {*mine, *theirs} if mine.get(n) != theirs.get(n))[:4]
            ),
            do="create the AveragedModel from the program that was saved with the state",
        )
