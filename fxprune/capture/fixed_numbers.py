"""Numbers of a network that depend on its dtype, and stay as they are where a captured program is moved to another.

They are compared with those of runs in other dtypes. Each one that differs gets a remark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.code import reached_names
from fxprune.graph.program import describe
from fxprune.remark import Remark
from fxprune.stand_in.objects import is_foreign
from fxprune.torch_private import example_number

CODE = "capture.number-fixed"
_ASKS = ("dtype", "finfo", "itemsize", "element_size")
_BRANCHES = {
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_LARGEST = 1 << 20  # numbers of a table that are computed in other types to compare them
_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)


class Constant:
    """The value of a tensor that a network makes of Python numbers; equal to another one of the same bits."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and _same(self.value, other.value)

    def __hash__(self) -> int:
        return hash((self.value.dtype, self.value.shape))

    def converts_to(self, other: Constant) -> bool:
        """Whether conversion gives what a run in another dtype made: all of it, where the network keeps its type."""
        if self == other:
            return all(_kept(self.value, dtype) for dtype in _DTYPES)
        return _same(self.value.to(other.value.dtype), other.value)


def is_lift(op: Any) -> bool:
    """Whether an operator makes a tensor of the network of a constant."""
    return op in _LIFTS


def constant_of(value: Any) -> Constant | None:
    """The constant that is made a tensor of the network, where it is one of floating-point numbers with data.

    Args:
        value: the argument of the call; a node that reads an attribute of its graph's module stands for it.
    """
    if isinstance(value, fx.Node) and value.op == "get_attr":
        owner: Any = value.graph.owning_module
        path, _, name = str(value.target).rpartition(".")
        value = getattr(owner.get_submodule(path), name, None) if owner is not None else None
    plain = type(value) in (torch.Tensor, nn.Buffer, nn.Parameter) and not value.is_meta
    return Constant(value) if plain and value.is_floating_point() else None


def asks_for_dtype(model: nn.Module) -> list[torch.dtype] | None:
    """The dtypes that the model's code names, if it asks for a dtype at all; None where it does not."""
    names = _names_in_code(model)
    if names.isdisjoint((*_ASKS, *_BRANCHES)):
        return None
    return list(dict.fromkeys(dtype for word, dtype in _BRANCHES.items() if word in names))


def _names_in_code(model: nn.Module) -> set[str]:
    """The names in the code that `forward` of the model's own classes reaches by name, and functions of its modules."""
    known = _named_functions(model)
    kept = [f for m in model.modules() for f in vars(m).values()]
    return reached_names([*kept, *known.get("forward", ())], known)


def _named_functions(model: nn.Module) -> dict[str, list[Any]]:
    """The methods and properties of the classes of the model's modules, by name."""
    found: dict[str, list[Any]] = {}
    kinds = {base for m in model.modules() for base in type(m).__mro__ if not is_foreign(base)}
    for kind in kinds:
        for name, x in vars(kind).items():
            function = x.fget if isinstance(x, property) else getattr(x, "__func__", x)
            found.setdefault(name, []).append(function)
    return found


def computes_otherwise(model: nn.Module, dtype: torch.dtype) -> Remark:
    """The remark on a model that calls other operators in another dtype."""
    return Remark(
        "analysis",
        CODE,
        type(model).__name__,
        f"the model calls other operators in {dtype}; a program that is moved there calls those of the example",
        "its code asks for the dtype of a tensor, and decides by it",
        "capture the model again in the other dtype",
    )


def number_fixed(node: fx.Node, name: str) -> Remark:
    """The remark on an argument, or a constant, that is another one in another dtype."""
    if is_lift(node.target):
        what = (
            "the numbers of this constant are converted when the program is moved to another dtype"
        )
        why = (
            "they are not those that the model makes there: digits are lost, or a number has no finite value in the "
            "other dtype"
        )
    else:
        what = f"its argument {name} stays as it was when the program is moved to another dtype"
        why = (
            "the model computes this number from the dtype of the network; only torch.finfo(dtype).min, max and eps "
            "can be taken from a tensor, in operators that accept one there"
        )
    do = "capture the model again in the other dtype"
    return Remark("analysis", CODE, describe(node), what, why, do)


def table_fixed(node: fx.Node) -> Remark:
    """The remark on a table that is made in the dtype of the example and then converted."""
    dtype = node.meta["val"].dtype
    return Remark(
        "analysis",
        CODE,
        describe(node),
        f"its numbers are computed in {dtype} and then converted when the program is moved to another dtype",
        "this operator cannot take its dtype from a tensor, and gives other digits in another dtype",
        "capture the model again in the other dtype",
    )


def converts_exactly(node: fx.Node) -> bool:
    """Whether a call that makes a tensor of numbers gives the same in other dtypes as converted from its own."""
    operands = [n.meta.get("val") for n in node.all_input_nodes]
    value = node.meta["val"]
    if any(isinstance(x, torch.Tensor) for x in operands) or not value.dtype.is_floating_point:
        return True
    numel = example_number(value.numel())
    if numel is None or numel > _LARGEST:
        return False
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: example_number(n.meta["val"])
    )
    target: Any = node.target

    def made(dtype: torch.dtype) -> torch.Tensor:
        flat, spec = pytree.tree_flatten((args, kwargs))
        flat = [_replaced(x, value.dtype, dtype) for x in flat]
        given, named = pytree.tree_unflatten(flat, spec)
        return target(*given, **named)  # type: ignore[no-any-return]

    return _all_equal(made, value.dtype)


def _all_equal(made: Callable[[torch.dtype], torch.Tensor], own: torch.dtype) -> bool:
    try:
        table = made(own)
        return all(_same(table.to(dtype), made(dtype)) for dtype in _DTYPES)
    except (RuntimeError, TypeError):  # there is no such table in one of the types
        return True


def _replaced(x: Any, own: torch.dtype, dtype: torch.dtype) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return dtype if x == own and isinstance(x, torch.dtype) else x


def _kept(x: torch.Tensor, dtype: torch.dtype) -> bool:
    return _same(x.to(dtype).to(torch.float64), x.to(torch.float64))


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return (
        x.dtype == y.dtype
        and x.shape == y.shape
        and bool(torch.isclose(x, y, rtol=0, atol=0, equal_nan=True).all())
    )
