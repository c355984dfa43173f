"""Both ways with torch.fx: its passes in our pipelines, and its GraphModules as our programs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.capture import capture
from fxprune.errors import CaptureError, OptionError
from fxprune.operands import is_operator
from fxprune.pipeline.context import Context
from fxprune.pipeline.kinds import Rewrite
from fxprune.program import Program, TracedModule
from fxprune.sizes import Sizes
from fxprune.torch_private import fake_result

GraphFunction = Callable[..., Any]


@dataclass(frozen=True)
class FxPass(Rewrite):
    """Runs a `GraphModule -> GraphModule | PassResult | None` function of any fx tool, on a copy."""

    name: ClassVar[str] = "fx"
    call: str
    function: GraphFunction | None = field(default=None, compare=False, repr=False)

    def rewrite(self, program: Program, ctx: Context) -> Program:
        given = copy.deepcopy(program.module)
        text = given.code
        returned = (self.function or _load(self.call))(given)
        module = getattr(returned, "graph_module", given if returned is None else returned)
        if not isinstance(module, torch.nn.Module):
            raise OptionError(
                f"{self.call} returned a {type(module).__name__}",
                do="return a GraphModule, a PassResult, or None after changing the argument",
            )
        said = getattr(returned, "modified", None)
        if said is False or (module is given and said is None and _unchanged(given, text, program)):
            return program
        if not ctx.allow(self.call, "ran", code="ran"):
            return program
        return _adopt(module, program)


def fx_pass(function: GraphFunction) -> FxPass:
    """A pass of our pipelines from a function on a GraphModule; verified like any other."""
    owner = getattr(function, "__module__", "") or type(function).__module__
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return FxPass(f"{owner}:{name}", function)


def _load(call: str) -> GraphFunction:
    module, _, path = call.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            f"there is no function {call}",
            why=str(error),
            do="write fx{call=package.module:function}",
        ) from error
    return found() if isinstance(found, type) else found  # type: ignore[no-any-return]


def _unchanged(module: fx.GraphModule, text: str, program: Program) -> bool:
    module.recompile()
    if module.code != text:
        return False
    now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    known = program.tensors()
    return now.keys() <= known.keys() and all(torch.equal(now[k], known[k]) for k in now)


def _adopt(module: torch.nn.Module, program: Program) -> Program:
    """A program of what an fx pass returned: as it is where it still is a graph of operators."""
    if isinstance(module, TracedModule) and all(map(_plain, module.graph.nodes)):
        for node in module.graph.nodes:
            if node.op == "call_function" and "val" not in node.meta:
                node.meta["val"] = fake_result(node.target, node.args, node.kwargs)
        module.recompile()
        return program.with_module(module)
    new = capture(module, program.args, dict(program.kwargs), dynamic_batch=program.free_batch)
    return replace(new, name=program.name, remarks=program.remarks)


def _plain(node: fx.Node) -> bool:
    if node.op == "call_function":
        return is_operator(node) or "val" in node.meta
    return node.op in ("placeholder", "get_attr", "output") and (
        node.op == "output" or "val" in node.meta
    )


def as_program(module: fx.GraphModule) -> Program:
    """A program of a GraphModule that knows what its inputs look like.

    Raises:
        CaptureError: nothing says what the inputs look like.
    """
    values = [_example(n) for n in module.graph.find_nodes(op="placeholder")]
    if any(v is _UNKNOWN for v in values):
        raise CaptureError(
            "the GraphModule does not say what its inputs look like",
            where=type(module).__name__,
            why="a pass needs sizes and types; its placeholders have no meta['val'] or meta['tensor_meta']",
            do="run torch.fx.passes.shape_prop.ShapeProp on it, or use fp.capture(module, args)",
        )
    info = getattr(module.graph._codegen, "pytree_info", None)
    args, kwargs = (
        (tuple(values), {}) if info is None else pytree.tree_unflatten(values, info.in_spec)
    )
    if isinstance(module, TracedModule):
        free = any(isinstance(v, torch.Tensor) for v in values)
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
        return _random(Sizes.of_symbols({}).shape(value), value.dtype)
    if (known := meta.get("tensor_meta")) is not None:
        return _random(list(known.shape), known.dtype)
    return _UNKNOWN


def _random(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype)
    return torch.zeros(shape, dtype=dtype)
