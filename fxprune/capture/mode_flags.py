"""What operators that depend on the mode are called with in the other mode, found by running the model in it.

The code of a class says little about this: a dropout may always be on, although the class that it is derived from
reads `training`; and a function outside of any class may read the `training` of what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.mode_check import is_torch
from fxprune.graph.mode import mode_argument, mode_argument_of
from fxprune.graph.operands import argument_of
from fxprune.graph.program import module_path
from fxprune.process.state import callers_device
from fxprune.stand_in import stand_in
from fxprune.torch_private import WithoutData, every_call


def flags_in_other_mode(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], graph: fx.Graph
) -> dict[fx.Node, Any]:
    """Returns the mode's arguments of the calls in the model's own code, as they are in the other mode.

    Args:
        model: the model.
        args: the example positional inputs.
        kwargs: the example keyword inputs.
        graph: its normalised graph; the model does not run where torch's modules alone call such operators.

    Returns:
        By node; none where the model calls other operators of this kind in the other mode, or does not run in it.
    """
    nodes = [n for n in graph.nodes if mode_argument(n)]
    known = dict(model.named_modules(remove_duplicate=False))
    own = [n for n in nodes if not is_torch(type(_owner(known, n, model)))]
    own = [n for n in own if _owner(known, n, model).training == model.training]
    if not own:
        return {}
    calls = _calls(model, args, kwargs)
    if [_name(n.target) for n in nodes] != [name for name, _ in calls]:
        return {}
    found = {n: flag for n, (_, flag) in zip(nodes, calls, strict=True)}
    return {n: found[n] for n in own}


def _calls(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """The calls that depend on the mode, and what with, in the other mode."""
    calls: list[tuple[str, Any]] = []

    def note(op: Any, given: tuple[Any, ...], named: Mapping[str, Any], _result: Any) -> None:
        if name := mode_argument_of(op, given, named):
            calls.append((_name(op), argument_of(op, given, named, name)))

    inputs = pytree.tree_flatten((args, dict(kwargs)))
    try:
        with stand_in(model) as twin, callers_device():
            empty = WithoutData(twin.train(not model.training), *inputs)
            with every_call(note, autograd=False):
                torch.compiler.disable(empty)()  # type: ignore[no-untyped-call]
    except Exception:  # that mode is not what is captured
        return []
    return calls


def _owner(known: Mapping[str, nn.Module], node: fx.Node, model: nn.Module) -> nn.Module:
    return known.get(module_path(node), model)


def _name(op: Any) -> str:
    """The name of an operator, in place or not."""
    return str(op._schema.name).rstrip("_")
