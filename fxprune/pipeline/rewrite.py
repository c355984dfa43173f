"""Our passes as functions: of a Program, and of a GraphModule, as torch.fx's pass manager calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast, overload

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassResult
from torch.utils import _pytree as pytree

from fxprune.capture import capture
from fxprune.errors import CaptureError
from fxprune.graph.program import Program, TracedModule
from fxprune.graph.sizes import Sizes, is_symbolic, symbolic_axes
from fxprune.pipeline.context import Context
from fxprune.pipeline.kinds import PlainRewrite
from fxprune.pipeline.manager import run_passes
from fxprune.pipeline.pipeline import Pipeline
from fxprune.torch_private import pytree_specs, symbols_of


@dataclass(frozen=True)
class Rewrite(PlainRewrite):
    """Makes another program of a program.

    Called on a Program it returns one; called on a GraphModule it returns torch's `PassResult`, as the
    passes of `torch.fx.passes.infra.pass_manager` do.
    """

    @overload
    def __call__(self, source: Program) -> Program: ...
    @overload
    def __call__(self, source: fx.GraphModule) -> PassResult: ...
    def __call__(self, source: Program | fx.GraphModule) -> Program | PassResult:
        """Runs this pass alone, verified as in a pipeline."""
        before = source if isinstance(source, Program) else as_program(source)
        after = run_passes(before, Pipeline([self]), Context()).program
        if isinstance(source, Program):
            return after
        changed = after is not before
        return PassResult(after.module if changed else source, changed)


def as_program(module: fx.GraphModule) -> Program:
    """A program of a GraphModule that knows what its inputs look like.

    Raises:
        CaptureError: nothing says what the inputs look like.
    """
    places = module.graph.find_nodes(op="placeholder")
    values = [_example(n) for n in places]
    if any(v is _UNKNOWN for v in values):
        unknown = [n.name for n, v in zip(places, values, strict=True) if v is _UNKNOWN]
        raise CaptureError(
            "the GraphModule does not say what its inputs look like",
            where=f"{type(module).__name__}: {', '.join(unknown)}",
            why="a pass needs sizes and types; these placeholders have no meta['val'] or meta['tensor_meta']",
            do="run torch.fx.passes.shape_prop.ShapeProp on it, or use fp.capture(module, args)",
        )
    specs = pytree_specs(module.graph)
    args, kwargs = (tuple(values), {}) if specs is None else pytree.tree_unflatten(values, specs[0])
    if isinstance(module, TracedModule) and all("val" in n.meta for n in places):
        free = any(0 in symbolic_axes(n.meta.get("val")) for n in places)
        return Program(module, args, kwargs, free_batch=free, name=type(module).__name__)
    return capture(module, args, kwargs)


_UNKNOWN = object()


def _example(placeholder: fx.Node) -> Any:
    """A random input of the type that a placeholder takes."""
    meta = placeholder.meta
    if "val" in meta or "example_value" in meta:
        value = meta.get("val", meta.get("example_value"))
        if not isinstance(value, torch.Tensor):
            return value
        return _random(_sizes(value), value.dtype, value.device)
    if (known := meta.get("tensor_meta")) is not None:
        return _random(list(known.shape), known.dtype, torch.device("cpu"))
    return placeholder.args[0] if placeholder.args else _UNKNOWN


def _sizes(value: torch.Tensor) -> list[int]:
    """The sizes of an input: those of the example, but a free batch is 2 long; torch takes a 1 for a constant."""
    known: dict[Any, int] = {}
    for axis, size in enumerate(cast("tuple[Any, ...]", value.shape)):
        if is_symbolic(size):
            hints = {name: facts.hint or 2 for name, facts in symbols_of(size).items()}
            alone = axis == 0 and size.node.expr.is_Symbol
            for symbol in size.node.expr.free_symbols:
                known[symbol] = 2 if alone else hints[symbol.name]
    return Sizes.of_symbols(known).shape(value)


def _random(shape: list[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype, device=device)
    return torch.zeros(shape, dtype=dtype, device=device)
