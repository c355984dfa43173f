"""Weights from a file, as people have them: safetensors or a state of torch.save, with or without a wrapper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from fxprune.errors import OptionError, some

DEFAULT = "DEFAULT"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_NESTED = 4  # wrappers in wrappers
State = Mapping[str, torch.Tensor]


def put_weights(model: nn.Module, file: str) -> None:
    """Loads a file into a model whose names and sizes it has.

    Args:
        model: to load into; it stays as it is where the file does not fit.
        file: of safetensors, or of torch.save; it is read without running code.

    Raises:
        OptionError: the file cannot be read, or has other names or sizes.
    """
    state = _with_tied(_stripped(_state(_read(Path(file)), file), model.state_dict()), model)
    _check(model, state, file)
    try:
        model.load_state_dict(dict(state))
    except Exception as error:  # a class may load in its own way
        raise OptionError(
            f"the weights of {file} do not fit {type(model).__name__}",
            where="--weights",
            why=" ".join(str(error).split())[:400],
            do="build the model with the arguments that it was trained with: --args",
        ) from error


def _read(path: Path) -> Any:
    if not path.is_file():
        raise OptionError(
            f"there is no file {str(path)[-120:]}",
            where="--weights",
            do=f"name a file of safetensors or torch.save, or {DEFAULT} for a model of torchvision or timm",
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format says in its own ways that a file is none
        text = (str(error) or type(error).__name__).split("\n")[0]
        if isinstance(error, UnpicklingError):
            text = "it is no such file, or holds objects besides tensors and plain values: to read them would run code"
        raise OptionError(
            f"cannot read {str(path)[-120:]}",
            where="--weights",
            why=text[:240],
            do="save tensors alone: torch.save(model.state_dict(), file), or safetensors.torch.save_model",
        ) from error


def _state(found: Any, file: str) -> State:
    """The tensors by name, out of a wrapper such as {"state_dict": ...}."""
    for _ in range(_NESTED):
        if not isinstance(found, Mapping):
            break
        if found and all(isinstance(x, torch.Tensor) for x in found.values()):
            return found
        inner = next((found[k] for k in _WRAPPERS if isinstance(found.get(k), Mapping)), None)
        if inner is None:
            tensors = {k: x for k, x in found.items() if isinstance(x, torch.Tensor)}
            if len(tensors) > len(found) / 2:  # extra states of modules among them
                return found
            break
        found = inner
    keys = f"its keys are {some(list(map(str, found)))}" if isinstance(found, Mapping) else ""
    raise OptionError(
        f"{file} holds no state of a model",
        where="--weights",
        why=keys or f"it holds a {type(found).__name__}",
        do=f"save the state alone, or under one of {', '.join(_WRAPPERS)}: torch.save(model.state_dict(), file)",
    )


def _stripped(state: State, wanted: State) -> State:
    """The state without a prefix that all its names have and no name of the model needs."""
    for _ in range(2):
        if state.keys() & wanted.keys():
            return state
        prefix = next((p for p in _PREFIXES if all(str(k).startswith(p) for k in state)), None)
        if prefix is None:
            return state
        state = {k.removeprefix(prefix): x for k, x in state.items()}
    return state


def _with_tied(state: State, model: nn.Module) -> State:
    """The state with every name of a tensor that the model has under several, and the file under one."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    more: dict[str, torch.Tensor] = {}
    for same in names.values():
        there = next((n for n in same if n in state), None)
        if there is not None:
            more |= {n: state[there] for n in same if n not in state}
    return {**state, **more}


def _check(model: nn.Module, state: State, file: str) -> None:
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in state]
    unexpected = [str(k) for k in state if k not in wanted]
    shapes = [
        f"{k} is {tuple(x.shape)} in the file and {tuple(wanted[k].shape)} in the model"
        for k, x in state.items()
        if k in wanted
        and isinstance(x, torch.Tensor)
        and isinstance(wanted[k], torch.Tensor)
        and x.shape != wanted[k].shape
    ]
    parts = [
        f"{len(missing)} are missing: {some(missing)}" if missing else "",
        f"{len(unexpected)} are unexpected: {some(unexpected)}" if unexpected else "",
        f"{len(shapes)} have another shape: {some(shapes)}" if shapes else "",
    ]
    if any(parts):
        raise OptionError(
            f"the weights of {file} do not fit {type(model).__name__}",
            where="--weights",
            why="; ".join(filter(None, parts)),
            do="build the model with the arguments that it was trained with: --args '{\"num_classes\": 10}'",
        )
