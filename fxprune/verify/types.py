"""How exactly two runs of a network agree where it computes in several floating-point types.

A region in bfloat16 is no reason to hold the rest of a network to the digits of bfloat16. Each output is held to
those of the least exact type that reaches it. What is more, both runs keep the values that go from one type to
another: where these are equal bit for bit, whatever comes later differs by its own roundings only.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.graph.evaluate import is_mutable
from fxprune.graph.program import Program, named_tensors
from fxprune.verify.check import Judged, Run, judge_outputs, least_exact, relative_error

Tensor = torch.Tensor
Types = frozenset[torch.dtype]
_NONE: Types = frozenset()


class ByType:
    """Judges the outputs of a program, and the values between its types, each by its type.

    Attributes:
        dtype: the least exact type of the model's tensors and the program's values; float32 where they have none
            with a tolerance.
        mixed: whether they have several types, so that what goes from one to another is watched.

    Args:
        model: what the program was captured from.
        program: the program.
        factors: by which a value of the program may be larger or smaller than that of the model, whose weights take the
            factor over later, as that of a norm does.
    """

    def __init__(self, model: nn.Module, program: Program, factors: Collection[float] = ()) -> None:
        self._factors = {1.0, *factors, *(1 / f for f in factors)}
        self._reaching = reaching_types(program)
        held = _types(named_tensors(model).values())
        every = held.union(*(_value_types(n.meta.get("val")) for n in program.nodes))
        self.dtype = least_exact(every)
        self.mixed = len(every) > 1
        self._crossed: list[_Crossings] = []

    def watched(self, run: Run) -> Run:
        """The run, which also keeps what goes from one type to another; the run that is right comes first."""
        if not self.mixed:
            return run

        def watched(args: tuple[Any, ...], kwargs: Any) -> Sequence[Any]:
            with _Crossings() as crossings:
                outputs = run(args, kwargs)
            self._crossed.append(crossings)
            return outputs

        return watched

    def judge(self, found: Sequence[Any], wanted: Sequence[Any]) -> Iterator[Judged]:
        """The error of each output, and of each value of at least float32 that goes to another type."""
        inexact, between = None, list[Judged]()
        if self._crossed:
            expected, got = self._crossed
            self._crossed.clear()
            inexact, between = _compare(expected.values, got.values, self._factors)
        types = [
            least_exact(_value_types(x) | (reach if inexact is None else reach & inexact))
            for x, reach in zip(wanted, self._reaching, strict=False)
        ]
        types += [self.dtype] * (len(wanted) - len(types))
        yield from judge_outputs(found, wanted, types)
        yield from between


def reaching_types(program: Program) -> list[Types]:
    """The floating-point types of the values that each output is computed from, its own included."""
    found = _reaching(program)
    outputs = pytree.tree_leaves(program.graph.output_node().args[0])
    return [found[x] if isinstance(x, fx.Node) else _NONE for x in outputs]


def gradient_types(program: Program) -> dict[str, Types]:
    """The floating-point types of the values that the gradient of each parameter is computed from."""
    found = _reaching(program)
    for node in reversed(found):
        found[node] = found[node].union(*(found[u] for u in node.users if u in found))
    return {str(n.target): found[n] for n in program.graph.find_nodes(op="get_attr")}


def _reaching(program: Program) -> dict[fx.Node, Types]:
    """The floating-point types of each node and of all that it is computed from."""
    found: dict[fx.Node, Types] = {}
    for node in program.nodes:
        if node.op == "output":
            break
        inputs = [found[n] for n in node.all_input_nodes]
        found[node] = _own_types(program, node).union(*inputs)
        for written in node.all_input_nodes if is_mutable(node) else ():
            found[written] |= found[node]
    return found


class _Crossings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the floating-point operands of calls in which several floating-point types meet."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        operands = [x for x in pytree.tree_leaves((args, kwargs)) if _types([x])]
        if several := len(_types(operands)) > 1:
            self._keep(operands)  # before the call, which may write to them
        result = func(*args, **(kwargs or {}))
        if operands and not several and _types(pytree.tree_leaves(result)) - _types(operands):
            self._keep(operands)
        return result

    def _keep(self, operands: list[Tensor]) -> None:
        self.values += [x.detach().clone(memory_format=torch.contiguous_format) for x in operands]


def _compare(
    wanted: Sequence[Tensor], found: Sequence[Tensor], factors: Collection[float]
) -> tuple[Types, list[Judged]]:
    """The types of the values that one run has and the other has not, and the errors of those of at least float32.

    Values are told apart by their bits: in what order a call casts its arguments is its own affair. A value of 16
    bits is not judged, since it may be no more than the rounding error of others.
    """
    inexact, judged = set[torch.dtype](), list[Judged]()
    expected, got = _only_in(wanted, found), _only_in(found, wanted)
    comparable = Counter(map(_look, expected)) == Counter(map(_look, got))
    for b in expected:
        if comparable and b.dtype.itemsize > 2:
            a = got.pop(next(i for i, x in enumerate(got) if _look(x) == _look(b)))
            known = b.isfinite() & a.isfinite()
            one, other = a.where(known, 0), b.where(known, 0)
            error = min(relative_error(one * factor, other) for factor in factors)
            name = f"a value of {b.dtype} and the shape {tuple(b.shape)} on its way to another type"
            judged.append(Judged(error, least_exact({b.dtype, *inexact}), name))
        inexact.add(b.dtype)
    return frozenset(inexact.union(x.dtype for x in got)), judged


def _only_in(values: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """The values that are bit for bit those of no other."""
    known = {_bits(x) for x in others}
    return [x for x in values if _bits(x) not in known]


def _look(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.shape


def _bits(x: Tensor) -> tuple[Any, ...]:
    numbers = x.cpu().view(torch.uint8) if x.dim() else x.cpu().reshape(1).view(torch.uint8)
    return x.dtype, x.shape, hashlib.blake2b(numbers.numpy().tobytes()).digest()


def _own_types(program: Program, node: fx.Node) -> Types:
    own = _value_types(node.meta.get("val"))
    if node.op != "get_attr":
        return own
    value: Any = program.module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    if isinstance(value, fx.GraphModule):  # what an operator of higher order calls
        return own.union(*(_value_types(n.meta.get("val")) for n in value.graph.nodes))
    return own | _types([value])


def _value_types(value: Any) -> Types:
    return _types(pytree.tree_leaves(value))


def _types(values: Iterable[Any]) -> Types:
    return frozenset(x.dtype for x in values if isinstance(x, Tensor) and x.is_floating_point())
