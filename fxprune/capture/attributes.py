"""What a model keeps in attributes and changes while it runs, such as a count of its calls, or the last call's tensor.

A graph of operators reads inputs, parameters, buffers and constants: an attribute is in it as the example found it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune.remark import Remark

_NUMBERS = (int, float, bool, complex)


def changed_attributes(model: nn.Module, twin: nn.Module) -> dict[str, str]:
    """The attributes of modules that hold something else in a stand-in that ran than in its model, and how they differ.

    Numbers, tuples and lists of them, and tensors that the run has computed are compared.

    Args:
        model: as it was before the run.
        twin: the stand-in, after the run.
    """
    before = {path: vars(module) for path, module in model.named_modules()}
    changed: dict[str, str] = {}
    for path, module in twin.named_modules():
        for name, value in vars(module).items() if path in before else ():
            was = before[path].get(name)
            if _differ(was, value) and not _is_computed(module, name):
                shown = _shown(was) if name in before[path] else "nothing"
                changed[f"{path}.{name}".lstrip(".")] = (
                    f"{shown} before the example, {_shown(value)} after it"
                )
    return changed


def _is_computed(module: nn.Module, name: str) -> bool:
    """Whether a hook of torch.nn.utils (of norms, of pruning) sets an attribute in front of each forward."""
    return any(f"{name}_{part}" in module._parameters for part in ("orig", "g"))


def _differ(was: Any, now: Any) -> bool:
    if isinstance(now, torch.Tensor):  # without data where the run has made it
        return type(now) is not type(was) and isinstance(was, torch.Tensor | None)
    if isinstance(now, tuple | list) and now and all(isinstance(n, _NUMBERS) for n in now):
        return was is None or (isinstance(was, tuple | list) and tuple(was) != tuple(now))
    return type(now) in _NUMBERS and type(was) in (*_NUMBERS, type(None)) and bool(was != now)


def _shown(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def attribute_remarks(model: nn.Module, changed: dict[str, str]) -> list[Remark]:
    """One remark for each attribute that a run changed."""
    return [
        Remark(
            "analysis",
            "capture.attribute-changed",
            f"{type(model).__name__}, attribute {name}",
            "the program computes with what it is before the example, and does not change it",
            f"forward changes it: {how}",
            "keep it in a buffer, which the program changes too, if the outputs depend on it",
        )
        for name, how in changed.items()
    ]
