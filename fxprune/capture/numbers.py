"""Numbers that a model keeps in attributes and changes while it runs, such as a count of its calls.

A graph of operators holds tensors alone: a Python number is in it with the value of the example.
"""

from __future__ import annotations

from torch import nn

from fxprune.remark import Remark

_NUMBERS = (int, float, bool, complex)


def changed_numbers(model: nn.Module, twin: nn.Module) -> dict[str, str]:
    """The attributes of modules that hold another number in a stand-in that ran than in its model, and how they differ.

    Args:
        model: as it was before the run.
        twin: the stand-in, after the run.
    """
    before = {path: vars(module) for path, module in model.named_modules()}
    changed: dict[str, str] = {}
    for path, module in twin.named_modules():
        for name, value in vars(module).items() if path in before else ():
            was = before[path].get(name)
            if type(value) in _NUMBERS and type(was) in (*_NUMBERS, type(None)) and was != value:
                shown = repr(was) if name in before[path] else "nothing"
                changed[f"{path}.{name}".lstrip(".")] = (
                    f"{shown} before the example, {value!r} after it"
                )
    return changed


def number_remarks(model: nn.Module, changed: dict[str, str]) -> list[Remark]:
    """One remark for each number that a run changed."""
    return [
        Remark(
            "analysis",
            "capture.number-changed",
            f"{type(model).__name__}, attribute {name}",
            "the program computes with the number of the example, and does not change it",
            f"forward changes it: {how}",
            "keep it in a buffer, which the program changes too, if the outputs depend on it",
        )
        for name, how in changed.items()
    ]
