"""Holds the smaller model against the original whose parts are silenced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.analysis.axes import Axes
from fxprune.errors import VerifyError
from fxprune.graph.evaluate import quiet
from fxprune.graph.program import named_tensors
from fxprune.partial.calls import Call, Signature
from fxprune.partial.join import get_tensor, path_under
from fxprune.partial.parts import Part
from fxprune.plan import Plan
from fxprune.process.state import callers_device, undisturbed
from fxprune.stand_in import stand_in
from fxprune.torch_private import changed_calls, pytree_specs
from fxprune.verify import Batch, Check, Silenced, compare_runs, forward_failed, noisy
from fxprune.write_back import write_tensors

Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True)
class Silencing:
    """What it takes to run the parts of a model as if some units were not there.

    Attributes:
        parts: one for each kind of input a submodule was called with.
        axes: labels of the program of all parts.
        plan: its removed units are silenced.
        dtype: of the computation.
    """

    parts: Sequence[Part]
    axes: Axes
    plan: Plan
    dtype: torch.dtype


def verify_parts(model: nn.Module, inputs: Inputs, silencing: Silencing, seed: int) -> Check:
    """Runs both on the inputs, without dropout; tensors of one repeated value are given noise, the same in both.

    Dropout would draw other numbers for other sizes. Whatever else is random starts from the same random state.
    """
    dtype = silencing.dtype
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, inputs
    )

    def wanted(args: tuple[Any, ...], kwargs: Any) -> Sequence[Any]:
        copied, dropout_off = _noisy_copy(model, dtype, seed), changed_calls(quiet)
        with copied as original, _silenced(original, silencing), dropout_off:
            return _comparable(original(*args, **kwargs))

    def found(args: tuple[Any, ...], kwargs: Any) -> Sequence[Any]:
        with _noisy_copy(model, dtype, seed) as original:
            small = write_tensors(original, silencing.plan, inplace=True)
            with changed_calls(quiet):
                return pytree.tree_leaves(_run_small(small, args, kwargs))

    batches = [Batch(args, kwargs, None)]
    return compare_runs(
        wanted, found, batches, dtype=dtype, against="the silenced original", seed=seed
    )


def _comparable(outputs: Any) -> Sequence[Any]:
    leaves = pytree.tree_leaves(outputs)
    if not any(isinstance(x, torch.Tensor) and x.numel() for x in leaves):
        raise VerifyError(
            "the model returns nothing that could be compared",
            why="no detection, for example, passes its threshold on random weights",
            do="lower the threshold, or pass other example inputs",
        )
    return leaves


def _run_small(small: nn.Module, args: tuple[Any, ...], kwargs: Any) -> Any:
    try:
        return small(*args, **kwargs)
    except Exception as error:
        raise forward_failed(small, error) from error


@contextmanager
def _noisy_copy(model: nn.Module, dtype: torch.dtype, seed: int) -> Iterator[nn.Module]:
    """A copy of the model to run in `dtype`, with noise on the tensors of one repeated value."""
    with undisturbed(), stand_in(model, own_data=True) as twin, callers_device(), torch.no_grad():
        tensors = named_tensors(twin.to(dtype))
        for name, values in noisy(tensors, seed).items():
            tensors[name].copy_(values)
        yield twin


@contextmanager
def _silenced(model: nn.Module, silencing: Silencing) -> Iterator[None]:
    """Lets the parts of a copy of the model run as if what the plan removes were not there."""
    with ExitStack() as undo:
        for path in dict.fromkeys(p.path for p in silencing.parts):
            module = model.get_submodule(path)
            module.forward = _forward(model, path, silencing)
            undo.callback(vars(module).pop, "forward")
        yield


def _forward(model: nn.Module, path: str, silencing: Silencing) -> Callable[..., Any]:
    parts = {_single(p.signature): p for p in silencing.parts if p.path == path}
    removed, dtype = silencing.plan.removed, silencing.dtype
    inner = model.get_submodule(path).forward

    def provide(name: str, value: torch.Tensor) -> torch.Tensor:
        """The tensor of the copy, where the part's is one of the model's."""
        try:
            own = get_tensor(model, path_under(path, name))
        except AttributeError:
            return value
        return own.detach().to(value) if isinstance(own, torch.Tensor) else value

    def forward(*args: Any, **kwargs: Any) -> Any:
        signature = _single(Call(path, args, dict(kwargs)).signature())
        if signature in parts:
            part = parts[signature]
            runner = Silenced(part.program, _axes_of(part, silencing.axes), removed, dtype, provide)
            specs = pytree_specs(part.program.graph)
            assert specs is not None, "torch.export names inputs and outputs"
            return pytree.tree_unflatten(runner.evaluate(args, kwargs), specs[1])
        if all(not isinstance(x, torch.Tensor) or not x.numel() for x in args):
            return inner(*args, **kwargs)
        raise VerifyError(
            f"{path} is called with other inputs than when it was captured",
            why=f"{signature[2:]} instead of one of {[s[2:] for s in parts]}",
            do="verify on inputs of the sizes that it was captured with",
        )

    return forward


def _single(signature: Signature) -> Signature:
    """The signature whatever the precision."""
    return tuple(s.replace("torch.float64", "torch.float32") for s in signature)


def _axes_of(part: Part, axes: Axes) -> Axes:
    """The labels by the nodes of the part alone."""
    nodes = {n: axes.nodes[twin] for n, twin in part.nodes.items()}
    marks = {n: axes.marks[twin] for n, twin in part.nodes.items() if twin in axes.marks}
    return replace(axes, nodes=nodes, marks=marks)
