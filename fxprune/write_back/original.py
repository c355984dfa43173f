"""A model before anything is cut, and what is found out about it once for all plans."""

from __future__ import annotations

from torch import nn

from fxprune.graph.program import Program
from fxprune.verify import needs_data
from fxprune.write_back.rebuild import Builder


class Original:
    """A model that stays as it is.

    Args:
        model: the model.
        program: what was captured of it.
        builder: of its class, if it has one.

    Attributes:
        needs_data: whether its forward only runs on real tensors; None until that is asked for.
    """

    def __init__(self, model: nn.Module, program: Program, builder: Builder | None) -> None:
        self._model, self._program, self.builder = model, program, builder
        self.needs_data: bool | None = None

    def run(self) -> None:
        """Finds out what its forward needs."""
        if self.needs_data is None:
            self.needs_data = needs_data(self._model, self._program)
