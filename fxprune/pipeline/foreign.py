"""Passes of torch.fx in our pipelines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import fx

from fxprune.capture import capture
from fxprune.errors import OptionError
from fxprune.graph.leaf import leaf_of
from fxprune.graph.operands import is_operator
from fxprune.graph.program import Program, TracedModule
from fxprune.graph.sizes import symbolic_axes
from fxprune.pipeline.context import Context
from fxprune.pipeline.rewrite import Rewrite
from fxprune.plugins import find_named
from fxprune.torch_private import fake_mode_of, fake_result

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
    kwargs, free = dict(program.kwargs), any(map(symbolic_axes, program.input_values()))
    new = capture(module, program.args, kwargs, dynamic_batch=free)
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
