"""What one program returns for random inputs, kept for all the models that are held against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.graph.program import Program
from fxprune.verify.check import Run
from fxprune.verify.inputs import Batch, batches_of


class Memory:
    """The inputs of a comparison and what the program returns for them.

    It holds for one program with the same tensors, one seed, and few rows or those of the example.
    """

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._outputs: dict[tuple[Any, ...], Sequence[Any]] = {}

    def batches(self, program: Program, seed: int, *, few: bool = False) -> Sequence[Batch]:
        """The inputs, which are drawn once; with `few` as in `batches_of`."""
        self._batches = self._batches or list(batches_of(program, seed, few=few))
        return self._batches

    def remembering(self, prepare: Callable[[], Run]) -> Run:
        """A run of the program that is made once for inputs of the same sizes.

        Args:
            prepare: returns the run; it is called where one is needed.
        """

        def remembered(args: tuple[Any, ...], kwargs: Any) -> Sequence[Any]:
            leaves = pytree.tree_leaves((args, kwargs))
            key = tuple(tuple(x.shape) for x in leaves if isinstance(x, torch.Tensor))
            if key not in self._outputs:
                self._outputs[key] = prepare()(args, kwargs)
            return self._outputs[key]

        return remembered
