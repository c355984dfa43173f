"""Holds a model against the smaller program, with factors that its weights may have to take over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial

import torch
from torch import nn

from fxprune.errors import FxpruneError
from fxprune.graph.program import Program
from fxprune.verify import check_numbers
from fxprune.verify.memory import Memory
from fxprune.write_back.fold import Folds
from fxprune.write_back.rebuild import is_scalar
from fxprune.write_back.scale import Scales


class Agreement:
    """Whether a model computes what the smaller program does, perhaps once its queries have taken a factor over.

    Args:
        small: the smaller program.
        tensors: the tensors that it runs with.
        folds: the averages that the model's weights have taken over.
        scales: what the plan leaves behind in attention.
    """

    def __init__(
        self,
        small: Program,
        tensors: Mapping[str, torch.Tensor],
        folds: Folds,
        scales: Scales,
    ) -> None:
        self._small, self._tensors, self._folds = small, tensors, folds
        self._options = scales.options()
        self._known = [next(self._options)]
        self._memories = Memory(), Memory()

    def __call__(self, model: nn.Module) -> None:
        """Compares the numbers of the two, by that option first with which they agreed last.

        Raises:
            FxpruneError: they differ, whatever the queries take over.
        """
        first: FxpruneError | None = None
        own = {
            name
            for name, x in model.named_buffers()
            if is_scalar(x) and name in self._tensors and not _equal(x, self._tensors[name])
        }
        for option in self._untried():
            folds = Folds((*self._folds, *option))
            try:
                check_numbers(
                    model,
                    self._small,
                    tensors=self._tensors,
                    written=partial(self._written, folds, own),
                    memories=self._memories,
                    factors={fold.factor for fold in folds},
                )
            except FxpruneError as error:
                first = first or error
            else:
                self._known.sort(key=lambda x: x is not option)
                return
        assert first is not None, "there is an option"
        raise first

    def _written(
        self, folds: Folds, own: Collection[str], values: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The tensors of the model for values of those of the program, without the numbers that its class computes."""
        return {name: x for name, x in folds.of(values).items() if name not in own}

    def _untried(self) -> Iterator[Folds]:
        yield from tuple(self._known)
        for option in self._options:
            self._known.append(option)
            yield option

    def taken(self, model: nn.Module) -> Folds:
        """What the weights of the model have to take over for it to agree."""
        if len(self._known) > 1:
            self(model)
        return self._known[0]


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Returns whether two numbers are equal; those on the meta device have no value to differ in."""
    return x.is_meta or y.is_meta or torch.equal(x, y)
