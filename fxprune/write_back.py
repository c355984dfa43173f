"""Applies a plan to the original nn.Module: slices its tensors and adjusts the attributes that repeat sizes.

The class and its forward code stay as they are. Sizes that a custom class stores itself, such as a number
of heads, are unknown to fxprune: `register_sizes` declares them; otherwise the plan is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import nn

from fxprune.algebra.label import IntArray
from fxprune.analysis.cache import solved
from fxprune.capture.failure import first_line
from fxprune.errors import PlanError
from fxprune.graph.program import Program, module_path, named_tensors
from fxprune.plan import Kept, Plan, Rescale, SetArgument, check_plan
from fxprune.process.state import plain_modes
from fxprune.shrink import apply_plan
from fxprune.shrink.tensors import slice_tensors
from fxprune.stand_in import Remembered
from fxprune.verify import check_numbers, check_sizes

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Cut:
    """The effect of a plan on one module.

    Attributes:
        module: the module, with its tensors already sliced and its attributes unchanged.
        path: its name in the model; "" for the model itself.
        kept: its own parameters and buffers -> axis -> kept positions, for those that lose positions.
        before: the original length of axis 0 of each of its tensors.
        spelled: new values of arguments of the operators it calls, by (name, entry).
    """

    module: Any
    path: str
    kept: Kept
    before: Mapping[str, int]
    spelled: Mapping[tuple[str, int | None], Any]

    def groups(self, tensor: str, groups: int) -> int:
        """Returns how many of `groups` equal runs of axis 0 keep at least one position."""
        positions: IntArray | None = self.kept.get(tensor, {}).get(0)
        if positions is None:
            return groups
        return len(np.unique(positions // (self.before[tensor] // groups)))


Attributes = dict[str, Any]
Sizer = Callable[[Cut], Attributes]
_table: dict[type[nn.Module], Sizer] = {}


def register_sizes(*kinds: type[nn.Module]) -> Callable[[Sizer], Sizer]:
    """Registers a function that returns the new attributes of modules of these classes, and subclasses, after a cut."""

    def register(function: Sizer) -> Sizer:
        _table.update(dict.fromkeys(kinds, function))
        return function

    return register


@plain_modes()
def write_back(
    model: M,
    plan: Plan,
    *,
    inplace: bool = False,
    program: Program | None = None,
    verify: bool = True,
) -> M:
    """Returns the model without everything that the plan removes; its class and forward code do not change.

    Args:
        model: the model that was captured.
        plan: a plan for its program.
        inplace: change `model` itself; it is restored if this fails. Its parameters become new objects.
        program: the captured program, for a plan that was read from a file.
        verify: run the model's forward and compare its outputs with those of the smaller program.

    Raises:
        PlanError: the plan is for another model, the model's own forward cannot express it, or there is no
            program to verify with.
    """
    if program is not None:
        plan = check_plan(program, plan)
    if verify and plan.program is None:
        raise PlanError(
            "there is no program to verify the model with",
            why="the plan was read from a file",
            do="pass program=fp.capture(model, args), or verify=False",
        )
    refuse_edits(plan)
    return write_tensors(model, plan, inplace=inplace, check=_check if verify else None)


def _check(model: nn.Module, plan: Plan) -> None:
    program = plan.program
    assert program is not None
    check_sizes(model, program)
    check_numbers(model, apply_plan(program, solved(program), plan))


def write_tensors(
    model: M, plan: Plan, *, inplace: bool, check: Callable[[nn.Module, Plan], None] | None = None
) -> M:
    """Slices tensors and sets attributes; the model is restored if this or `check` fails."""
    _check_names(model, plan)
    target = model if inplace else _twin(model)
    with _all_or_nothing(target):
        cuts = _cuts(target, plan)
        slice_tensors(target, plan.kept)
        for cut in cuts:
            _set_attributes(cut)
        if check is not None:
            check(target, plan)
    return target


def refuse_edits(plan: Plan) -> None:
    """Refuses plans whose graph edits no forward of a model would make.

    Raises:
        PlanError: an average is rescaled, or attention keeps the scale of a larger head.
    """
    for edit in plan.edits:
        if isinstance(edit, Rescale):
            why = f"an average over removed positions must be multiplied by {edit.numerator}/{edit.denominator}"
            raise _inexpressible(plan, edit.node, why)
        if isinstance(edit, SetArgument) and edit.argument == "scale":
            why = f"attention must keep the scale {edit.new:g} of its original head size"
            raise _inexpressible(plan, edit.node, why)


def _inexpressible(plan: Plan, node: str, why: str) -> PlanError:
    paths = _paths(plan)
    return PlanError(
        "the model's own forward cannot express this plan",
        where=f"node {node}" + (f" in {paths[node]}" if paths.get(node) else ""),
        why=why,
        do="use the smaller program (fp.shrink), or exclude the modules before this one with ignore=...",
    )


def _paths(plan: Plan) -> dict[str, str]:
    """Returns the module path of each node of the plan's program."""
    return {} if plan.program is None else {n.name: module_path(n) for n in plan.program.nodes}


def _check_names(model: nn.Module, plan: Plan) -> None:
    tensors = named_tensors(model)
    for name, cut in plan.kept.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise PlanError(
                f"the model has no parameter or buffer {name}",
                where=type(model).__name__,
                why="the plan is for another model, or it cuts a constant in the model's forward code",
                do="use the smaller program (fp.shrink)",
            )
        for axis, positions in cut.items():
            last = int(positions.max(initial=0))
            if axis >= tensor.dim() or last >= tensor.shape[axis]:
                raise PlanError(
                    "the plan is for another model",
                    where=f"{name}, axis {axis}",
                    why=f"the plan keeps position {last}, but the shape is {tuple(tensor.shape)}",
                    do="pass the model that was captured, before anything was removed",
                )


def _twin(model: M) -> M:
    """Returns a copy of the module tree and its attributes that shares the tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    try:
        return copy.deepcopy(model, {id(t): t for t in tensors})
    except Exception as error:
        raise PlanError(
            f"{type(model).__name__} cannot be copied",
            why=f"{type(error).__name__}: {first_line(error)}",
            do="call write_back(model, plan, inplace=True)",
        ) from error


@contextmanager
def _all_or_nothing(model: nn.Module) -> Iterator[None]:
    remembered = Remembered()
    remembered.add(model)
    try:
        yield
    except BaseException:
        remembered.put_back()
        raise


def _cuts(model: nn.Module, plan: Plan) -> list[Cut]:
    """Returns the effect of the plan on each module that it cuts or that contains such a module; shared ones once."""
    first = {id(m): p for p, m in model.named_modules()}
    kept: dict[str, dict[str, Mapping[int, IntArray]]] = {}
    for name, cut in plan.kept.items():
        path, _, leaf = name.rpartition(".")
        kept.setdefault(first[id(model.get_submodule(path))], {})[leaf] = cut
    spelled: dict[str, dict[tuple[str, int | None], Any]] = {}
    paths = _paths(plan)
    for edit in plan.edits:
        if isinstance(edit, SetArgument) and edit.node in paths:
            spelled.setdefault(paths[edit.node], {})[edit.argument, edit.index] = edit.new
    around = {p for path in [*kept, *spelled] for p in _prefixes(path)}
    return [
        Cut(m, p, kept.get(p, {}), _lengths(m), spelled.get(p, {}))
        for p, m in model.named_modules()
        if p in around
    ]


def _prefixes(path: str) -> Iterator[str]:
    """Yields the paths of a module and of the modules that contain it."""
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


def _lengths(module: nn.Module) -> dict[str, int]:
    own = {**module._parameters, **module._buffers}
    return {name: len(t) for name, t in own.items() if t is not None and t.dim()}


def _set_attributes(cut: Cut) -> None:
    found = next((_table[k] for k in type(cut.module).__mro__ if k in _table), None)
    if found is None:
        return
    for name, value in found(cut).items():
        if getattr(cut.module, name) != value:
            setattr(cut.module, name, value)


# The attributes of torch's own modules


@register_sizes(nn.modules.conv._ConvNd)
def _convolution(cut: Cut) -> Attributes:
    m = cut.module
    groups = cut.groups("weight", m.groups)
    a, b = m.weight.shape[0], m.weight.shape[1] * groups
    inner, outer = (a, b) if m.transposed else (b, a)
    return {"groups": groups, "in_channels": inner, "out_channels": outer}


@register_sizes(nn.Linear)
def _linear(cut: Cut) -> Attributes:
    m = cut.module
    return {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}


@register_sizes(nn.Bilinear)
def _bilinear(cut: Cut) -> Attributes:
    m = cut.module
    return dict(zip(("out_features", "in1_features", "in2_features"), m.weight.shape, strict=True))


@register_sizes(nn.Embedding, nn.EmbeddingBag)
def _embedding(cut: Cut) -> Attributes:
    m = cut.module
    return {"embedding_dim": m.weight.shape[1]}


@register_sizes(nn.modules.batchnorm._NormBase)
def _batch_norm(cut: Cut) -> Attributes:
    m = cut.module
    tensor = next((t for t in (m.weight, m.running_mean) if t is not None), None)
    return {} if tensor is None else {"num_features": len(tensor)}


@register_sizes(nn.LayerNorm, nn.RMSNorm)
def _layer_norm(cut: Cut) -> Attributes:
    m = cut.module
    shape = m.normalized_shape if m.weight is None else m.weight.shape
    spelled = [cut.spelled.get(("normalized_shape", i), n) for i, n in enumerate(shape)]
    return {"normalized_shape": tuple(spelled)}


@register_sizes(nn.GroupNorm)
def _group_norm(cut: Cut) -> Attributes:
    m = cut.module
    if m.weight is None:
        groups = cut.spelled.get(("num_groups", None), m.num_groups)
        return {"num_groups": groups}
    groups = cut.groups("weight", m.num_groups)
    return {"num_groups": groups, "num_channels": len(m.weight)}


@register_sizes(nn.PReLU)
def _prelu(cut: Cut) -> Attributes:
    m = cut.module
    return {"num_parameters": len(m.weight)}


@register_sizes(nn.ChannelShuffle)
def _channel_shuffle(cut: Cut) -> Attributes:
    m = cut.module
    return {"groups": cut.spelled.get(("groups", None), m.groups)}


@register_sizes(nn.RNNBase)
def _recurrent(cut: Cut) -> Attributes:
    m = cut.module
    gates = {"LSTM": 4, "GRU": 3}.get(m.mode, 1)
    hidden = m.weight_hh_l0.shape[0] // gates
    attributes = {"input_size": m.weight_ih_l0.shape[1], "hidden_size": hidden}
    if m.proj_size:
        attributes["proj_size"] = m.weight_hr_l0.shape[0]
    several = {t.shape[0] for n, t in m.named_parameters() if n.startswith("weight_hh")}
    if len(several) > 1:
        raise PlanError(
            "the layers of a recurrent module would lose different numbers of hidden units",
            where=cut.path,
            do="use the smaller program (fp.shrink)",
        )
    m._flat_weights = [getattr(m, name, None) for name in m._flat_weights_names]
    return attributes


@register_sizes(nn.RNNCellBase)
def _recurrent_cell(cut: Cut) -> Attributes:
    m = cut.module
    return {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_hh.shape[1]}


@register_sizes(nn.MultiheadAttention)
def _attention(cut: Cut) -> Attributes:
    raise PlanError(
        "nn.MultiheadAttention cannot be made smaller",
        where=cut.path,
        why="its forward assumes that heads x head size = width",
        do="use the smaller program (fp.shrink), or exclude this module and those before it with ignore=...",
    )
