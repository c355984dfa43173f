"""A network with trained weights, its data and what it is good for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import fxprune as fp

Outputs = Callable[[Tensor], Any]
Quality = Callable[[Outputs], float]


@dataclass(frozen=True)
class Real:
    """A network and what it is good for.

    Attributes:
        model: with trained weights, in eval mode.
        example: inputs to capture it with.
        data: batches with a loss, for criteria and statistics.
        train: inputs for recovery, without labels.
        quality: of a program or a model, on inputs that neither `data` nor `train` has.
        measure: what quality is, in words.
        spelled: modules whose width the forward spells as a number, so that it does not run where the width is another;
            a graph is not bound to it.
    """

    model: nn.Module
    example: Tensor
    data: fp.Calibration
    train: list[Tensor]
    quality: Quality
    measure: str
    spelled: tuple[str, ...] = ()


def folder_of(package: str) -> Path:
    """The folder of an installed package, which is not imported.

    Raises:
        ImportError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed: see the target quality of the Makefile")
    return Path(spec.origin).parent


def module_of(file: Path, *, without: str, name: str, **given: Any) -> dict[str, Any]:
    """What a source file of a package defines, without one of its lines: packages import much that is not needed here.

    Args:
        file: the source.
        without: the line to leave out, which imports what is not installed.
        name: of the module.
        given: what the file finds defined.
    """
    code = file.read_text().replace(without, "")
    space: dict[str, Any] = {"__name__": name, "__file__": str(file), **given}
    exec(compile(code, str(file), "exec"), space)
    return space
