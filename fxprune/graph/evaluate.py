"""Runs a program node by node in a chosen precision, optionally with replaced tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.fx._pytree import tree_flatten_spec
from torch.utils import _pytree as pytree

from fxprune.graph.memory import written_memory
from fxprune.graph.operands import is_operator
from fxprune.graph.program import Program
from fxprune.torch_private import mutated, pytree_specs

Provide = Callable[[str, torch.Tensor], torch.Tensor]
# Arguments that switch random numbers off: programs of different sizes draw different ones.
QUIET = {"train": False, "dropout_p": 0.0}
_RANDOM = {("rrelu", "training"): False}  # of a batch norm, this means something else


def flat_inputs(
    module: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Flattens inputs into the order of the graph's placeholders; keyword inputs may come in any order."""
    specs = pytree_specs(module.graph)
    if specs is None:
        return [*args, *kwargs.values()]
    return list(tree_flatten_spec((args, dict(kwargs)), specs[0]))


# Without a named type, integers come out where only integers go in.
COUNTED = (
    "aten::arange",
    "aten::randint",
    "aten::full",
    "aten::scalar_tensor",
    "aten::randperm",
    "aten::tril_indices",
    "aten::triu_indices",
)


# torch has no float64 kernels for these.
SINGLE = frozenset(
    (
        "aten::_fused_moving_avg_obs_fq_helper",
        "aten::_fused_moving_avg_obs_fq_helper_functional",
        "aten::fake_quantize_per_channel_affine",
        "aten::fake_quantize_per_channel_affine_cachemask",
        "aten::_fake_quantize_learnable_per_channel_affine",
    )
)


class _Later:
    """Stands for a stored tensor, which is read whenever a node needs it: all of them at once may not fit into memory.

    Args:
        read: returns it.
    """

    def __init__(self, read: Callable[[], torch.Tensor]) -> None:
        self.read = read


class _Values(dict[fx.Node, Any]):
    """The values of nodes, of stored tensors as they are read."""

    def __getitem__(self, node: fx.Node) -> Any:
        value = super().__getitem__(node)
        return value.read() if isinstance(value, _Later) else value


class Evaluator(fx.Interpreter):
    """Interprets a program with every floating-point tensor, constant and cast in one precision.

    Dropout is off, so that programs of different sizes can be compared. The program's own tensors
    are never written to.

    Args:
        program: the program to run.
        dtype: the floating-point type of the run.
        provide: maps the name and value of a parameter or buffer to the tensor to use in its place,
            in `dtype`.
    """

    def __init__(
        self, program: Program, dtype: torch.dtype, provide: Provide | None = None
    ) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self._program = program
        self.dtype = dtype
        self._provide = provide
        self._buffers: dict[str, torch.Tensor] = {}
        self.observe: Callable[[fx.Node, Any], None] | None = None

    @property
    def env(self) -> dict[fx.Node, Any]:
        """The values of the nodes that have run and are still to be read."""
        return self._values

    @env.setter
    def env(self, values: dict[fx.Node, Any]) -> None:
        self._values = _Values(values)

    def evaluate(self, args: tuple[Any, ...], kwargs: Any) -> list[Any]:
        """Returns the outputs as a flat list, for inputs in the form in which the model takes them."""
        flat = flat_inputs(self._program.module, args, kwargs)
        with torch.no_grad():
            out = self.run(*(self._cast(x) for x in flat), enable_io_processing=False)
        return pytree.tree_leaves(out)

    def begin(self, args: tuple[Any, ...], kwargs: Any) -> None:
        """Takes inputs, in the form in which the model takes them, for `go_on`."""
        flat = flat_inputs(self._program.module, args, kwargs)
        self.env, self.args_iter = {}, iter([self._cast(x) for x in flat])

    def go_on(self, nodes: Iterable[fx.Node]) -> Any:
        """Runs nodes in order with the values in `env`, where those stay that later nodes read; returns the last."""
        value = None
        with torch.no_grad():
            for node in nodes:
                self.env[node] = value = self.run_node(node)
                for done in self.user_to_last_uses.get(node, ()):
                    del self.env[done]
        return value

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node and passes its value to `observe`."""
        value = self.compute(n)
        if self.observe is not None and not isinstance(value, _Later):
            self.observe(n, value)
        return value

    def compute_part(
        self, nodes: Iterable[fx.Node], values: Mapping[fx.Node, Any], wanted: Iterable[fx.Node]
    ) -> list[Any]:
        """Runs some nodes in order by themselves, as at the start of a run.

        Args:
            nodes: which nodes to run.
            values: what is known of other nodes.
            wanted: whose values are returned; run, or known.
        """
        self._buffers, self.env = {}, dict(values)
        nodes, wanted = list(nodes), list(wanted)
        left = Counter(i for n in nodes for i in n.all_input_nodes)
        left.update(wanted)
        with torch.no_grad():
            for node in nodes:
                self.env[node] = self.run_node(node)
                for read in node.all_input_nodes:
                    left[read] -= 1
                    if not left[read]:
                        del self.env[read]
        return [self.env[n] for n in wanted]

    def compute(self, node: fx.Node) -> Any:
        """Computes the value of one node."""
        return super().run_node(node)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Reads a parameter or buffer, cast to the run's type; writes to a buffer persist during the run."""
        value = self.fetch_attr(target)
        if not isinstance(value, torch.Tensor):
            return value
        if target in self._buffers:
            return self._buffers[target]
        if self._program.stored is not None and value.is_meta:
            return _Later(lambda: self._ready(target, self._program.loaded(str(target), value)))
        if self._stays(target, value):
            return value.detach()
        return self._ready(target, value)

    def _ready(self, target: Any, value: torch.Tensor) -> torch.Tensor:
        """A tensor as the run reads it."""
        if target in self._buffers:
            return self._buffers[target]
        out = self._cast(value)
        if self._provide is not None:
            out = self._provide(str(target), out)
        out = out.clone() if out is value else out
        if not value.is_floating_point() or target.rpartition(".")[2].startswith("running_"):
            self._buffers[target] = out
        return out

    def _stays(self, target: str, value: torch.Tensor) -> bool:
        """Whether a tensor needs no copy: a large network has no memory for a second one of itself."""
        known = isinstance(value, nn.Parameter) and self._provide is None
        return known and value.dtype == self.dtype and target not in self._written

    @cached_property
    def _written(self) -> set[str]:
        found = written_memory(self._program.graph)
        return {str(node.target) for node in found if node.op == "get_attr"}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Calls a gate or an observer with copies of its tensors, so that an observer counts nothing."""
        leaf = self.fetch_attr(target).clone()
        leaf.frozen = True
        state = {}
        for name, value in (*leaf.named_parameters(), *leaf.named_buffers()):
            value = value.detach()
            cast = self._cast(value)
            cast = cast.clone() if cast is value else cast
            state[name] = self._provide(f"{target}.{name}", cast) if self._provide else cast
        return functional_call(leaf, state, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Calls an operator, with casts and new tensors in the run's type."""
        if isinstance(target, torch._ops.OpOverload):
            args, kwargs = quiet(target, args, kwargs)
            args = tuple(type_in(x, self.dtype) for x in args)
            kwargs = {name: type_in(x, self.dtype) for name, x in kwargs.items()}
            kwargs = self._created(target, args, kwargs)
            if self._program.stored is not None:
                args, kwargs = pytree.tree_map_only(torch.device, _off_meta, (args, kwargs))
            if self.dtype == torch.float64 and target._schema.name == "aten::_grouped_mm":
                return _grouped_mm(*args, **kwargs)
            if self.dtype == torch.float64 and target._schema.name in SINGLE:
                return in_single(target, args, kwargs)
        return super().call_function(target, args, kwargs)

    def _created(self, target: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Gives new floating-point tensors without an explicit type the type of the run."""
        names = {a.name: i for i, a in enumerate(target._schema.arguments)}
        if (
            "dtype" not in names
            or "layout" not in names
            or any(isinstance(a, torch.Tensor) for a in args)
        ):
            return kwargs
        spoken = kwargs.get("dtype") is not None or names["dtype"] < len(args)
        return (
            kwargs
            if spoken or self._makes_integers(target, args)
            else {**kwargs, "dtype": self.dtype}
        )

    @staticmethod
    def _makes_integers(target: Any, args: Any) -> bool:
        numbers = [a for a in pytree.tree_leaves(args) if isinstance(a, int | float)]
        counted = target._schema.name in COUNTED
        return counted and not any(isinstance(n, float) for n in numbers)

    def _cast(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.to(self.dtype, copy=True)
        if isinstance(value, torch.Tensor) and value.is_complex():
            return value.to(self.dtype.to_complex())
        return value


def _off_meta(device: torch.device) -> torch.device:
    """Where a graph that was captured on the meta device makes its tensors: stored ones are read to the CPU."""
    return torch.device("cpu") if device.type == "meta" else device


def type_in(value: Any, precision: torch.dtype) -> Any:
    """Returns the argument of an operator for a run in a precision: a type of real or complex numbers is replaced."""
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return precision
    if isinstance(value, torch.dtype) and value.is_complex:
        return precision.to_complex()
    return value


def quiet(target: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the arguments of an operator with dropout and random slopes switched off."""
    for i, argument in enumerate(target._schema.arguments):
        off = _RANDOM.get((target._opname.rstrip("_"), argument.name), QUIET.get(argument.name))
        if off is not None and i < len(args):
            args = (*args[:i], off, *args[i + 1 :])
        elif off is not None and argument.name in kwargs:
            kwargs = {**kwargs, argument.name: off}
    return args, kwargs


def _grouped_mm(
    a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor, bias: torch.Tensor | None = None, **_: Any
) -> torch.Tensor:
    """Multiplies each run of rows of `a` by its own matrix of `b`; torch has no float64 kernel for this."""
    out = a.new_zeros(len(a), b.shape[-1])
    start = 0
    for matrix, end in zip(b, offs.tolist(), strict=True):
        out[start:end] = a[start:end] @ matrix
        start = end
    return out if bias is None else out + bias


def in_single(
    target: torch._ops.OpOverload[Any, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Calls an operator in float32; its results, and what it writes, are returned in float64."""
    single = pytree.tree_map_only(torch.Tensor, _single, [*args])
    result = target(*single, **kwargs)
    for i in mutated(target):
        args[i].resize_(single[i].shape).copy_(single[i])
    return pytree.tree_map_only(
        torch.Tensor, lambda x: x.double() if x.is_floating_point() else x, result
    )


def _single(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype == torch.float64 else x


def is_mutable(node: fx.Node) -> bool:
    """Returns whether a node writes into one of its arguments."""
    return is_operator(node) and node.target._schema.is_mutable  # type: ignore[union-attr]
