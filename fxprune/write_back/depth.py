"""Fewer layers by a field of the config: the class is built with them, and reads the weights of those that stay.

Of n layers, those before the last go, the deepest first: without data, these are the ones that change a language model
least (Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", 2024, section 4.4).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.capture.failure import first_line
from fxprune.errors import OptionError, PlanError
from fxprune.graph.program import Program, named_tensors
from fxprune.process.state import undisturbed
from fxprune.remark import Remark
from fxprune.stand_in import stand_in
from fxprune.verify import TOLERANCE, relative_error
from fxprune.verify.check import on_meta
from fxprune.write_back.rebuild import Builder, shapes_of
from fxprune.write_back.slots import Slot, is_config
from fxprune.write_back.twin import twin_of
from fxprune.write_back.wish import name_of

Kept = Mapping[str, list[int]]
"""List of layers, by its path -> the numbers of those that stay."""


@dataclass(frozen=True, eq=False)
class Shallower:
    """A model with fewer layers.

    Attributes:
        model: of the same class.
        remarks: which layers left.
    """

    model: nn.Module
    remarks: list[Remark]


def without_layers(
    model: nn.Module, builder: Builder, depths: Mapping[Slot, int], program: Program
) -> Shallower:
    """The model without layers, so many that the fields of its config have these numbers.

    Args:
        model: whose class is built from its config; it stays as it is.
        builder: of the class.
        depths: fields that are numbers of layers -> the new numbers.
        program: of the model, with example inputs.

    Raises:
        OptionError: the layers that stay have other tensors than the class wants.
        PlanError: the class with the remaining layers computes something other than the model without the others.
    """
    names = ", ".join(f"{name_of(s)}={n}" for s, n in depths.items())
    smaller = _holding(builder, depths, names)
    kept = _kept(shapes_of(builder.before), shapes_of(smaller), names)
    _shorten_lists(smaller.config, kept, depths)
    built = builder.build_from(smaller.config, "meta" if on_meta(model) else "cpu")
    state = {new: model.state_dict()[old] for new, old in _sources(built.state_dict(), kept)}
    try:
        built.to(next(iter(named_tensors(model).values())).dtype)
        built.load_state_dict(state)
    except RuntimeError as error:
        raise OptionError(
            f"{names} leaves layers that differ from those that the class wants there",
            where="to=",
            why=first_line(error),
            do="choose another number of layers",
        ) from error
    device = next(iter(named_tensors(model).values())).device
    built = built.to(device).train(model.training)
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(model.get_parameter(_old_name(name, kept)).requires_grad)
    for name, value in vars(model).items():  # what a model holds besides, as settings of `generate`
        if name != "config" and is_config(value):
            setattr(built, name, copy.deepcopy(value))
    if not on_meta(model):
        _check(model, built, kept, program, names)
    return Shallower(built, list(_remarks(shapes_of(builder.before), kept, names)))


def _holding(builder: Builder, depths: Mapping[Slot, int], names: str) -> nn.Module:
    """A model of the shorter class, without data."""
    built = builder.build(depths)
    if built is None:
        raise OptionError(
            f"there is no {names}: the class refuses it", where="to=", why=builder.refusal(depths)
        )
    return built


def _kept(before: Mapping[str, Any], after: Mapping[str, Any], names: str) -> Kept:
    """Which layers stay of every list that gets shorter: the last one, and the first ones."""
    found: dict[str, list[int]] = {}
    for name in before.keys() - after.keys():
        for path, number in _numbered(name):
            if not any(other.startswith(f"{path}.{number}.") for other in after):
                old, new = (_count(shapes, path) for shapes in (before, after))
                found[path] = [*range(new - 1), old - 1]
                break
    if not found or any(not kept[0] <= kept[-1] for kept in found.values()):
        raise OptionError(f"{names} leaves no layers that the class could have", where="to=")
    return found


def _numbered(name: str) -> Iterator[tuple[str, int]]:
    """The paths of lists in the name of a tensor, and the number in each."""
    for match in re.finditer(r"\.(\d+)\.", name):
        yield name[: match.start()], int(match[1])


def _count(shapes: Mapping[str, Any], path: str) -> int:
    return len(
        {n.removeprefix(f"{path}.").partition(".")[0] for n in shapes if n.startswith(f"{path}.")}
    )


def _old_name(name: str, kept: Kept) -> str:
    """The name that a tensor of a layer that stays had before."""
    for path, numbers in kept.items():
        if name.startswith(f"{path}."):
            number, _, rest = name.removeprefix(f"{path}.").partition(".")
            return f"{path}.{numbers[int(number)]}.{rest}"
    return name


def _sources(names: Mapping[str, Any], kept: Kept) -> Iterator[tuple[str, str]]:
    for name in names:
        yield name, _old_name(name, kept)


def _shorten_lists(config: Any, kept: Kept, depths: Mapping[Slot, int]) -> None:
    """Gives lists of a config that have one entry for each layer the entries of those that stay."""
    for slot, new in depths.items():
        numbers = next((k for k in kept.values() if len(k) == new and k[-1] == slot.value - 1), [])
        for name, value in list(vars(config).items()):
            if isinstance(value, list | tuple) and len(value) == slot.value and numbers:
                setattr(config, name, type(value)([value[i] for i in numbers]))


@torch.no_grad()
def _check(model: nn.Module, built: nn.Module, kept: Kept, program: Program, names: str) -> None:
    """Holds the shorter model against the model with the other layers taken out of their lists."""
    twin = twin_of(model)
    for path, numbers in kept.items():
        layers: Any = twin.get_submodule(path)
        owner = twin.get_submodule(path.rpartition(".")[0])
        setattr(owner, path.rpartition(".")[2], type(layers)(*_entries(layers, numbers)))
    try:
        wanted, found = (_outputs(m, program) for m in (twin, built))
    except Exception as error:
        raise PlanError(
            f"{type(model).__name__} does not run with {names}",
            why=f"{type(error).__name__}: {first_line(error)}",
            do="leave the number of layers as it is",
        ) from error
    off = max((relative_error(a, b) for a, b in zip(found, wanted, strict=True)), default=0.0)
    if not off <= max((TOLERANCE.get(x.dtype, 0.0) for x in wanted), default=0.0):
        raise PlanError(
            f"with {names}, the class computes something other than the model without the layers that left",
            why=f"the outputs differ by {off:.1e}",
            do="leave the number of layers as it is",
        )


def _entries(layers: Any, numbers: list[int]) -> tuple[Any, ...]:
    chosen = [layers[i] for i in numbers]
    return (chosen,) if isinstance(layers, nn.ModuleList) else tuple(chosen)


def _outputs(model: nn.Module, program: Program) -> list[torch.Tensor]:
    """What a model returns for the example inputs, in eval mode."""
    args, kwargs = copy.deepcopy((program.args, dict(program.kwargs)))
    with undisturbed(), stand_in(model, own_data=True) as twin:
        leaves = pytree.tree_leaves(twin.eval()(*args, **kwargs))
    return [x for x in leaves if isinstance(x, torch.Tensor)]


def _remarks(before: Mapping[str, Any], kept: Kept, names: str) -> Iterator[Remark]:
    for path, numbers in kept.items():
        gone = [i for i in range(_count(before, path)) if i not in numbers]
        yield Remark(
            "analysis",
            "wished.layers",
            path,
            f"layers {', '.join(map(str, gone))} left",
            f"of {names}; those before the last go, the deepest first",
            "delete layers that data or training chose with a pipeline: docs/how-to/delete-layers.md",
        )
