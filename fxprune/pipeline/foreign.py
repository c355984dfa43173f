"""Both ways with torch.fx: its passes in our pipelines, and its GraphModules as our programs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.capture import capture
from fxprune.errors import CaptureError, OptionError
from fxprune.graph.leaf import leaf_of
from fxprune.graph.operands import is_operator
from fxprune.graph.program import Program, TracedModule
from fxprune.graph.sizes import Sizes, is_symbolic, symbolic_axes
from fxprune.pipeline.context import Context
from fxprune.pipeline.kinds import Rewrite
from fxprune.plugins import find_named
from fxprune.torch_private import fake_mode_of, fake_result, pytree_specs

GraphFunction = Callable[..., Any]


@dataclass(frozen=True)
class FxPass(Rewrite):
    """Runs a `GraphModule -> GraphModule | PassResult | None` function of any fx tool, on a copy.

    Args:
        call: `package.module:function`; a class is called without arguments first.
        changes: whether it changes the function of the program on purpose, so that nothing is compared.
    """

    name: ClassVar[str] = "fx"
    call: str
    changes: bool = False
    function: GraphFunction | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.changes:
            object.__setattr__(self, "keeps", "nothing")

    def rewrite(self, program: Program, ctx: Context) -> Program:
        given = copy.deepcopy(program.module)
        returned = (self.function or _load(self.call))(given)
        module = getattr(returned, "graph_module", given if returned is None else returned)
        if not isinstance(module, torch.nn.Module):
            raise OptionError(
                f"{self.call} returned a {type(module).__name__}",
                do="return a GraphModule, a PassResult, or None after changing the argument",
            )
        if _unchanged(module, program) or not ctx.allow(self.call, "ran", code="ran"):
            return program
        return _adopt(module, program, ctx)


def fx_pass(function: GraphFunction, *, changes: bool = False) -> FxPass:
    """A pass of our pipelines from a function on a GraphModule; verified like any other.

    Args:
        function: `GraphModule -> GraphModule | PassResult | None`; a pass object of torch.fx is one.
        changes: whether it changes the function of the program on purpose, so that nothing is compared.
    """
    owner = getattr(function, "__module__", "") or type(function).__module__
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return FxPass(f"{owner}:{name}", changes, function)


def _load(call: str) -> GraphFunction:
    found = find_named(call, "write fx{call=package.module:function}")
    return found() if isinstance(found, type) else found  # type: ignore[no-any-return]


def _unchanged(module: torch.nn.Module, program: Program) -> bool:
    """Whether an fx pass gave back the same graph and numbers, whatever it says itself."""
    if not isinstance(module, fx.GraphModule) or str(module.graph) != str(program.graph):
        return False
    now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    known = program.tensors()
    return now.keys() <= known.keys() and all(_same(now[k], known[k]) for k in now)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape or a.is_meta != b.is_meta:
        return False
    return a.is_meta or torch.equal(a, b)


def _adopt(module: torch.nn.Module, program: Program, ctx: Context) -> Program:
    """A program of what an fx pass returned: as it is where it still is a graph of operators."""
    if isinstance(module, TracedModule) and all(_plain(module, n) for n in module.graph.nodes):
        module.graph.lint()
        _infer(module, program.graph)
        module.recompile()
        return program.with_module(module)
    if gates := sum(leaf_of(program.module, n) is not None for n in program.nodes):
        ctx.remark(
            "analysis",
            "gates-inlined",
            program.name,
            f"{gates} gates and observers are plain operators now",
            "what the pass returned had to be captured again",
            "run it before they are inserted",
        )
    new = capture(module, program.args, dict(program.kwargs), dynamic_batch=program.free_batch)
    return replace(new, name=program.name, remarks=program.remarks)


def _plain(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is one that programs consist of."""
    if node.op == "call_function":
        return is_operator(node) or "val" in node.meta
    if node.op == "get_attr":
        return "val" in node.meta or isinstance(_attribute(module, node), torch.Tensor)
    if node.op == "call_module":
        return leaf_of(module, node) is not None
    return node.op == "output" or (node.op == "placeholder" and "val" in node.meta)


def _infer(module: fx.GraphModule, before: fx.Graph) -> None:
    """Works out the example values of nodes that are new or changed, and of what depends on them."""
    known = {n.name: _spelling(n) for n in before.nodes}
    mode = fake_mode_of([n.meta.get("val") for n in module.graph.nodes])
    stale: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            tensor, value = _attribute(module, node), node.meta.get("val")
            same = not isinstance(tensor, torch.Tensor) or (
                isinstance(value, torch.Tensor)
                and (value.shape, value.dtype) == (tensor.shape, tensor.dtype)
            )
            if not same:
                node.meta["val"] = mode.from_tensor(tensor, static_shapes=True) if mode else tensor
                stale.add(node)
        elif node.op in ("call_function", "call_module") and (
            "val" not in node.meta
            or known.get(node.name) != _spelling(node)
            or not stale.isdisjoint(node.all_input_nodes)
        ):
            node.meta["val"] = (
                fake_result(node.target, node.args, node.kwargs)
                if node.op == "call_function"
                else node.args[0].meta["val"]
            )
            stale.add(node)


def _spelling(node: fx.Node) -> tuple[str, str, str]:
    args, kwargs = fx.map_arg((node.args, node.kwargs), str)
    return str(node.target), str(args), str(kwargs)


def _attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    path, _, leaf = str(node.target).rpartition(".")
    return getattr(module.get_submodule(path), leaf)


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
    """The sizes of an input; a free axis is 2 long: torch takes a 1 for a constant."""
    free: set[Any] = set()
    for size in filter(is_symbolic, value.shape):
        free |= cast(
            Any, size
        ).node.expr.free_symbols  # a SymInt, which to a type checker is an int
    return Sizes.of_symbols(dict.fromkeys(free, 2)).shape(value)


def _random(shape: list[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype, device=device)
    return torch.zeros(shape, dtype=dtype, device=device)
