"""Samples: single calls of operators against which their rules are checked."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.graph.program import Program, build_module

Kind = Literal["normal", "positive", "probability", "index", "mask", "complex", "single", "ends"]


@dataclass(frozen=True)
class T:
    """A tensor argument with random values.

    Attributes:
        shape: the sizes of the tensor.
        kind: `normal`, `positive`, `probability` (from 0.1 to 0.9), `index` (below `high`), `mask` (bool),
            `complex`, `single` (float32), or `ends` (the ends of consecutive runs of rows, `high` in all).
        high: the bound of an index.
    """

    shape: tuple[int, ...]
    kind: Kind = "normal"
    high: int = 1

    def draw(self, rng: torch.Generator) -> torch.Tensor:
        """Returns a random tensor, in float64 if it is of a floating-point type."""
        if self.kind == "index":
            return torch.randint(self.high, self.shape, generator=rng)
        value = torch.rand(self.shape, generator=rng, dtype=torch.float64)
        if self.kind == "mask":
            return value < 0.5
        if self.kind == "normal":
            return torch.randn(self.shape, generator=rng, dtype=torch.float64)
        if self.kind == "single":
            return value.float()
        if self.kind == "ends":
            return torch.linspace(0, self.high, self.shape[0] + 1).int()[1:]
        if self.kind == "complex":
            return torch.randn(self.shape, generator=rng, dtype=torch.complex128)
        return 0.1 + value * (1.0 if self.kind == "positive" else 0.8)


def t(*shape: int) -> T:
    """A tensor of normally distributed numbers."""
    return T(shape)


def positive(*shape: int) -> T:
    """A tensor of numbers between 0.1 and 1.1."""
    return T(shape, "positive")


def index(high: int, *shape: int) -> T:
    """A tensor of integers from 0 to `high` - 1."""
    return T(shape, "index", high)


def mask(*shape: int) -> T:
    """A tensor of Booleans."""
    return T(shape, "mask")


@dataclass(frozen=True)
class Sample:
    """One call of an operator; every tensor in it counts as a parameter whose axes can all be pruned.

    Attributes:
        op: the full name of the operator, such as `aten.conv2d.default`.
        args: its arguments, with tensors as `T`.
        kwargs: its keyword arguments.
        times: multiply the result by a tensor of the same size. This is needed for operators that create
            tensors from numbers: otherwise no axis of a parameter would depend on the result.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    times: bool = False

    def __str__(self) -> str:
        given = [_show(a) for a in self.args] + [f"{k}={_show(v)}" for k, v in self.kwargs.items()]
        return f"{self.op}({', '.join(given)})"

    @property
    def target(self) -> torch._ops.OpOverload[Any, Any]:
        """The operator."""
        namespace, name, overload = self.op.split(".")
        found = getattr(getattr(getattr(torch.ops, namespace), name), overload)
        assert isinstance(found, torch._ops.OpOverload)
        return found


def _show(value: Any) -> str:
    if isinstance(value, T):
        kind = {"normal": "", "index": f"<{value.high}"}.get(value.kind, value.kind)
        return f"{kind}[{','.join(map(str, value.shape))}]"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_show, value))})"
    return str(value).removeprefix("torch.")


def sample(op: str, *args: Any, times: bool = False, **kwargs: Any) -> Sample:
    """Returns a `Sample` of a call as one writes it; `"aten.mm"` means `"aten.mm.default"`."""
    return Sample(op if op.count(".") > 1 else f"{op}.default", args, kwargs, times)


def build_program(sample: Sample, seed: int = 0) -> Program:
    """Returns the call as a program without inputs, with its tensors as buffers `t0`, `t1` and so on."""
    rng = torch.Generator().manual_seed(zlib.crc32(str(sample).encode()) + seed)
    builder = _Builder(rng)
    value = builder.call(sample.target, sample.args, sample.kwargs)
    if sample.times:
        factor = builder.tensor(T(tuple(value.meta["val"].shape)))
        value = builder.call(torch.ops.aten.mul.Tensor, (value, factor), {})
    builder.graph.output(builder.outputs(value))
    return Program(
        build_module(builder.root, builder.graph, training=False), (), {}, False, str(sample)
    )


class _Builder:
    def __init__(self, rng: torch.Generator) -> None:
        self.rng, self.root, self.graph = rng, torch.nn.Module(), fx.Graph()

    def tensor(self, spec: T) -> fx.Node:
        name = f"t{len(self.root._buffers)}"
        value = spec.draw(self.rng)
        self.root.register_buffer(name, value)
        return self._with_value(self.graph.get_attr(name), value)

    def call(self, target: Callable[..., Any], args: Any, kwargs: Any) -> fx.Node:
        args, kwargs = pytree.tree_map_only(
            T, self.tensor, (args, kwargs), is_leaf=lambda x: isinstance(x, T)
        )
        values = fx.map_arg((tuple(args), kwargs), lambda n: _copy(n.meta["val"]))
        return self._with_value(
            self.graph.call_function(target, tuple(args), kwargs), target(*values[0], **values[1])
        )

    def outputs(self, node: fx.Node) -> Any:
        if isinstance(node.meta["val"], torch.Tensor):
            return node
        values = enumerate(node.meta["val"])
        parts = [(i, v) for i, v in values if isinstance(v, torch.Tensor)]
        return [
            self._with_value(self.graph.call_function(operator.getitem, (node, i)), v)
            for i, v in parts
        ]

    @staticmethod
    def _with_value(node: fx.Node, value: Any) -> fx.Node:
        node.meta["val"] = value
        return node


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
