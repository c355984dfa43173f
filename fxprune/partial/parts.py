"""The largest submodules that export, from the top down."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture import capture
from fxprune.capture.dynamic import batch_alone
from fxprune.errors import FxpruneError
from fxprune.graph.program import Program
from fxprune.partial.calls import Call, Signature
from fxprune.remark import Remark


@dataclass(frozen=True)
class Part:
    """A submodule as captured for inputs of one kind.

    Attributes:
        path: its name in the model.
        program: the submodule alone, under names of its own.
        signature: what its inputs look like.
        nodes: node of `program` -> its copy in the program of all parts.
    """

    path: str
    program: Program
    signature: Signature
    nodes: dict[fx.Node, fx.Node] = field(default_factory=dict, repr=False)


class FoundParts:
    """Finds the parts of a model from the top down."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._failed: set[Signature] = set()
        self.parts: dict[Signature, Part] = {}
        self.opaque: list[Remark] = []

    def cover(self, call: Call) -> None:
        """Captures the called module, or else those that it called."""
        module = self._model.get_submodule(call.path)
        if next(module.parameters(), None) is None:
            return
        signature = call.signature()
        if signature not in self.parts and signature not in self._failed:
            self._try(call, module, signature)
        if signature in self._failed:
            for inner in call.inner:
                self.cover(inner)

    def _try(self, call: Call, module: nn.Module, signature: Signature) -> None:
        """Captures one call."""
        why = _cannot_cross(call)
        if not why:
            try:
                shapes = batch_alone(call.args, call.kwargs)
                program = capture(module, call.args, call.kwargs, dynamic_shapes=shapes)
            except FxpruneError as error:
                why = error.why or error.what
            else:
                self.parts[signature] = Part(call.path, program, signature)
                return
        self._failed.add(signature)
        where = f"{call.path or 'the model'} ({type(module).__name__})"
        self.opaque.append(
            Remark("missed", "capture.opaque", where, "its own operators are not captured", why)
        )


def _cannot_cross(call: Call) -> str:
    """Why torch.export would refuse the inputs of a call, as far as their types say."""
    for leaf in pytree.tree_leaves((call.args, call.kwargs)):
        if not isinstance(leaf, torch.Tensor | int | float | str | None):
            return f"an input is of the class {type(leaf).__name__}"
        if isinstance(leaf, torch.Tensor) and leaf.dim() and not leaf.shape[0]:
            return "an input is empty"
    return ""
