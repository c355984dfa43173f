"""A model of which some submodules are captured.

The model runs once while the inputs of its submodules are recorded; from the top down, every call
that exports becomes a part. One Program holds all parts side by side, under the model's own names:
its inputs are theirs, so whatever crosses the border between a part and the rest is frozen, and
solving, planning, shrinking and verifying need to know nothing of parts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import nn

from fxprune.analysis.cache import solved
from fxprune.errors import CaptureError
from fxprune.graph.program import Program
from fxprune.io.parts import load_parts, put_state
from fxprune.partial.calls import record
from fxprune.partial.join import join_parts
from fxprune.partial.parts import FoundParts, Part
from fxprune.partial.verify import Silencing, verify_parts
from fxprune.plan import Plan, check_plan
from fxprune.process.state import plain_modes
from fxprune.remark import Remark
from fxprune.verify import Check
from fxprune.write_back import refuse_edits, write_tensors


@dataclass(frozen=True)
class Partial:
    """A model of which some submodules are captured.

    Attributes:
        program: all parts side by side; plan on this.
        model: the model, not changed.
        parts: names of the captured submodules.
        opaque: what is outside and why; nothing of it is removed.
        instances: the parts, one for each kind of input a submodule was called with.
        args: the example inputs of the model.
        kwargs: those given by name.
    """

    program: Program
    model: nn.Module
    parts: tuple[str, ...]
    opaque: tuple[Remark, ...]
    instances: tuple[Part, ...] = field(repr=False)
    args: tuple[Any, ...] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)

    @plain_modes()
    def apply(self, plan: Plan, *, inplace: bool = False) -> nn.Module:
        """The model with what the plan removes gone from its parts.

        Raises:
            PlanError: the plan is for another capture, or the model's own forward cannot express it.
        """
        checked = self._checked(plan)
        return write_tensors(self.model, checked, inplace=inplace)

    def load(self, directory: str | PathLike[str]) -> nn.Module:
        """The smaller model of a directory that `fp.save` or `fxprune prune --partial` wrote.

        Its plan is applied to this capture, whose model is of the original sizes and not changed, and the
        saved tensors are put in; tensors that the model does not list in its state stay its own.

        Raises:
            LoadError: a file is missing, truncated or altered, or of another model.
            PlanError: the plan is for another capture.
        """
        plan, state = load_parts(directory)
        smaller = copy.deepcopy(self.apply(plan))
        put_state(smaller, state, directory)
        return smaller

    @plain_modes()
    def verify(self, plan: Plan, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Check:
        """Holds the smaller model against the original whose parts are silenced.

        Both run on the example inputs. Tensors of one repeated value get noise, the same in both.

        Raises:
            VerifyError: the model returns nothing that could differ.
            PlanError: the plan is for another capture, or the model's own forward cannot express it.
        """
        checked = self._checked(plan)
        silencing = Silencing(self.instances, solved(self.program), checked, dtype)
        return verify_parts(self.model, (self.args, self.kwargs), silencing, seed)

    def _checked(self, plan: Plan) -> Plan:
        """The plan, where it is for this capture and the model's own forward can express it."""
        checked = check_plan(self.program, plan)
        refuse_edits(checked)
        return checked


@plain_modes()
def capture_partial(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Partial:
    """Captures the largest submodules that export.

    Args:
        model: it runs once on the example inputs; it is not changed.
        args: example positional inputs; a tensor stands for a tuple of one.
        kwargs: example keyword inputs.

    Raises:
        CaptureError: the model does not run, or no submodule with parameters exports.
    """
    args = args if isinstance(args, tuple | list) else (args,)
    found = FoundParts(model)
    found.cover(record(model, tuple(args), dict(kwargs or {})))
    parts = tuple(found.parts.values())
    if not parts:
        raise CaptureError(
            "no submodule can be captured",
            where=type(model).__name__,
            why="; ".join(r.why for r in found.opaque[:3]),
            do="call the model on the example inputs first",
        )
    program = join_parts(model, parts)
    paths = tuple(dict.fromkeys(p.path for p in parts))
    return Partial(
        program, model, paths, tuple(found.opaque), parts, tuple(args), dict(kwargs or {})
    )
