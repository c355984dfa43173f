"""The second run of a network, in step with the first: which numbers follow the sizes of its inputs."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import gcd
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from fxprune.capture.formula import Condition, DifferentError, Formula, Length, Space, value_of
from fxprune.capture.lengths import computes_lengths, find_length, product, result_shapes
from fxprune.capture.record import Call, Record, Ref, Sizes

Shape = tuple[Any, ...]


class Merged(NamedTuple):
    """What a call has in common in both runs, with formulas in place of the numbers that differ.

    Attributes:
        op: the operator.
        args: positional arguments.
        kwargs: keyword arguments.
        made: shape and stride of each result.
    """

    op: Any
    args: Any
    kwargs: Any
    made: list[tuple[Shape, Shape]]


_ALIAS, _SLICE = torch.ops.aten.alias.default, torch.ops.aten.slice.Tensor


class EnoughError(Exception):
    """The run has come as far as it was to."""


class SecondRun:
    """Follows the calls of a second run.

    Args:
        space: the free sizes.
        first: the first run.
        free: the formulas of the free axes, by the number of the source and of its axis.
        sources: the parameters, buffers and inputs of this run.
        last: the number of the last call to compare; None for all.
    """

    def __init__(
        self,
        space: Space,
        first: Record,
        free: Mapping[int, Mapping[int, Formula]],
        sources: Sequence[Any],
        last: int | None = None,
    ) -> None:
        self._space, self._first, self._last = space, first, last
        self._sources = sources
        self._shapes: dict[Ref, Shape] = {}
        self._strides: dict[Ref, Shape] = {}
        self._made: list[list[Sizes]] = []
        self.merged: list[Merged] = []
        self.blamed: frozenset[str] = frozenset()
        self.missed: tuple[Condition, ...] = ()
        self._failed = False
        self._passed: dict[tuple[Any, Any], set[Formula]] = {}
        space.line = _line
        for i, axes in free.items():
            shape = tuple(axes.get(j, n) for j, n in enumerate(sources[i].shape))
            self._shapes[Ref(-1 - i)] = shape
            strides = [1] * len(shape)
            for j in reversed(range(len(shape) - 1)):
                strides[j] = product(space, [shape[j + 1], strides[j + 1]])
            self._strides[Ref(-1 - i)] = tuple(strides)

    def size(self, ref: Ref, sizes: torch.Size) -> torch.Size:
        """The sizes of a tensor, as numbers that know their formulas."""
        shape = self._shapes.get(ref)
        return sizes if shape is None else torch.Size(map(self._space.length, shape))

    def call(self, number: int, call: Call) -> None:
        """Compares a call with the same of the first run.

        Raises:
            DifferentError: it is another call.
            EnoughError: all calls that were to be compared are.
        """
        if number >= len(self._first.calls):
            raise DifferentError("the network calls more operators at other sizes", of_kernels=True)
        one = self._first.calls[number]
        if one.op is not call.op:
            one, call = self._as_slices(one, call)
        args, kwargs = self._merge(call.op, (one.args, one.kwargs), (call.args, call.kwargs))
        self._made.append(call.made)
        if len(one.made) != len(call.made):
            raise DifferentError(f"{call.op} returns another number of tensors at other sizes")
        made = self._results(number, one, call, args, kwargs)
        self.merged.append(Merged(call.op, args, kwargs, made))
        if self._last is not None and number >= self._last:
            raise EnoughError

    def _as_slices(self, one: Call, two: Call) -> tuple[Call, Call]:
        """Both calls as slices: torch calls an alias what is a slice of a whole axis.

        Raises:
            DifferentError: they are something else.
        """
        kinds = one.op, two.op
        if kinds not in ((_ALIAS, _SLICE), (_SLICE, _ALIAS)) or one.args[0] != two.args[0]:
            raise DifferentError(
                f"the network calls {two.op} in place of {one.op} at other sizes", of_kernels=True
            )
        run, sliced = (0, two) if one.op is _ALIAS else (1, one)
        source, dim, start, end = (*sliced.args, 0, None, None)[:4]
        whole = value_of(self._shape(source)[dim], run)
        if start not in (0, None) or not isinstance(end, int) or len(sliced.args) > 4:
            raise DifferentError("the network takes a part of an axis at some sizes only")
        other = (source, dim, 0, whole)
        same = (source, dim, 0, end)
        pair = (one._replace(op=_SLICE, args=other), two._replace(args=same))
        return pair if run == 0 else (one._replace(args=same), two._replace(op=_SLICE, args=other))

    def passed(self, given: Any) -> None:
        """Notes which formulas a method is given: its operators are given plain numbers."""
        self._passed = {}
        for x in pytree.tree_leaves(given):
            if isinstance(x, Length):
                self._passed.setdefault(x.formula.pair, set()).add(x.formula)

    def slice(self, ref: Ref, key: Any) -> None:
        """Notes the bounds of slices: what they are relative to the axis decides which operators are called."""
        shape = self._shape(ref)
        keys = key if isinstance(key, tuple) else (key,)
        parts = [k for k in keys if k is not None]
        if not all(isinstance(k, int | slice) or k is Ellipsis for k in parts):
            return
        axis = 0
        for k in parts:
            if k is Ellipsis:
                axis += len(shape) - len(parts) + 1
                continue
            if isinstance(k, slice) and axis < len(shape):
                self._bound(k.stop, shape[axis])
            axis += 1

    def _bound(self, stop: Any, whole: Any) -> None:
        end = stop.formula if isinstance(stop, Length) else stop
        if isinstance(end, Formula) or (isinstance(whole, Formula) and isinstance(end, int)):
            one, two = value_of(end, 0), value_of(whole, 0)
            if one == two:
                self._space.compare(operator.eq, end, whole)
            elif one > 0:
                self._space.compare(operator.le, end, whole)

    def _merge(self, op: Any, one: Any, two: Any) -> Any:
        if isinstance(two, Length):
            return two.formula
        if type(one) is not type(two):
            raise DifferentError(f"{op} is given another type of value at other sizes")
        if isinstance(one, dict):
            if one.keys() != two.keys():
                raise DifferentError(f"{op} is given other arguments at other sizes")
            return {key: self._merge(op, value, two[key]) for key, value in one.items()}
        if type(one) in (list, tuple):
            if len(one) != len(two):
                raise DifferentError(f"{op} is given another number of values at other sizes")
            return type(one)([self._merge(op, a, b) for a, b in zip(one, two, strict=True)])
        return one if one == two else self._number(op, one, two)

    def _number(self, op: Any, one: Any, two: Any) -> Formula:
        found = None
        passed = self._passed.get((one, two), ())
        if len(passed) == 1:
            return next(iter(passed))
        if type(one) in (int, float):
            found = self._space.find(one, two)
            if found is None and type(one) is int:
                found = self._space.find_multiple(one, two)
        if found is None:
            raise DifferentError(
                f"{op} is given {_shown(one)} at the example's sizes and {_shown(two)} at others: how it follows from "
                "the sizes does not show",
                of_kernels=True,
            )
        return found

    def _results(
        self, number: int, one: Call, two: Call, args: Any, kwargs: Any
    ) -> list[tuple[Shape, Shape]]:
        refs = [Ref(number, i if two.container else None) for i in range(len(two.made))]
        operands = [r for r in pytree.tree_leaves((args, kwargs), is_leaf=_is_ref) if _is_ref(r)]
        follows = any(r in self._shapes for r in operands)
        made: list[tuple[Shape, Shape]] = []
        ruled = None
        if follows and len(operands) > 1:
            self._require_alike(two.op, [self._shape(r) for r in operands])
        if follows and computes_lengths(two.op._opname):
            shapes = [self._shape(r) for r in operands]
            given = _named(two.op, args, kwargs)
            ruled = result_shapes(self._space, two.op._opname, shapes, given)
        for i, (ref, a, b) in enumerate(zip(refs, one.made, two.made, strict=True)):
            if a[2:] != b[2:]:
                raise DifferentError(f"{two.op} returns another type at other sizes")
            if a == b and not ruled:
                made.append((a[0], a[1]))
                continue
            if len(a[0]) != len(b[0]):
                raise DifferentError(f"{two.op} returns another number of axes at other sizes")
            rule = ruled[i] if ruled is not None and i < len(ruled) else None
            shape = self._shape_of(two, a[0], b[0], rule, operands, (args, kwargs))
            stride = self._stride_of(two, a[1], b[1], shape)
            made.append((shape, stride))
            if any(isinstance(n, Formula) for n in shape):
                self._shapes[ref], self._strides[ref] = shape, stride
        return made

    def _require_alike(self, op: Any, shapes: list[Shape]) -> None:
        """Requires lengths to be equal that are so in both runs, where an operator takes no others."""
        if torch.Tag.pointwise not in op.tags and op._opname not in ("cat", "concat", "where"):
            return
        for a, b in pairwise(shapes):
            for m, n in zip(reversed(a), reversed(b), strict=False):
                both = isinstance(m, Formula) and isinstance(n, Formula)
                if both and m is not n and m.pair == n.pair:
                    self._space.require(operator.eq, m, n)

    def _shape_of(
        self, call: Call, one: Any, two: Any, rule: Any, operands: list[Ref], given: Any
    ) -> Shape:
        if rule is not None:
            found = [(value_of(n, 0), value_of(n, 1)) for n in rule]
            if found == [*zip(one, two, strict=True)]:
                return tuple(self._settled(n) for n in rule)
        if one == two:
            return tuple(one)
        shapes = [self._shape(r) for r in operands]
        numbers = [x for x in pytree.tree_leaves(given) if isinstance(x, Formula)]
        out: list[Any] = []
        for a, b in zip(one, two, strict=True):
            n = a if a == b else find_length(self._space, (a, b), shapes, numbers)
            if n is None:
                raise DifferentError(
                    f"{call.op} returns an axis of {a} at the example's sizes, {b} at others, and it does not show how "
                    "that follows from the sizes",
                    self._symbols(operands),
                )
            out.append(n)
        return tuple(out)

    def _settled(self, n: Any) -> Any:
        """A length; a condition where it is equal in both runs, and may not be elsewhere."""
        if isinstance(n, Formula) and n.values[0] == n.values[1]:
            self._space.require(operator.eq, n, n.values[0])
            return n.values[0]
        return n

    def _stride_of(self, call: Call, one: Any, two: Any, shape: Shape) -> Shape:
        if one == two:
            return tuple(one)
        out = list[Any](one)
        for i in sorted(range(len(one)), key=lambda i: one[i]):
            if one[i] != two[i]:
                out[i] = self._stride(call, i, (one[i], two[i]), shape, out)
        return tuple(out)

    def _stride(
        self, call: Call, axis: int, pair: tuple[int, int], shape: Shape, strides: list[Any]
    ) -> Any:
        space = self._space
        for j, (n, step) in enumerate(zip(shape, strides, strict=True)):
            values = (value_of(n, k) * value_of(step, k) for k in (0, 1))
            if j != axis and tuple(values) == pair:
                return product(space, [n, step])
        found = space.any(*pair)  # no more than a hint: nothing is computed from it
        if found is None:
            raise DifferentError(
                f"{call.op} returns a memory layout that does not follow from the sizes",
                of_kernels=True,
            )
        return found

    def _shape(self, ref: Ref) -> Shape:
        return self._shapes.get(ref) or self._plain(ref, 1)

    def _plain(self, ref: Ref, run: int) -> Shape:
        """The shape of a tensor in one of the runs."""
        if ref.call >= 0:
            made = self._made[ref.call] if run else self._first.calls[ref.call].made
            return made[ref.output or 0][0]
        i = -1 - ref.call
        constants = self._first.constants
        source = self._sources[i] if i < len(self._sources) else constants[i - len(self._sources)]
        return tuple(torch.Tensor.size(source))

    def _symbols(self, operands: Sequence[Ref]) -> frozenset[str]:
        lengths = (n for r in operands for n in self._shapes.get(r, ()))
        return frozenset[str]().union(*(n.symbols for n in lengths if isinstance(n, Formula)))

    def failed(self, op: Any, args: Any, kwargs: Any) -> None:
        """Notes which sizes may be to blame for what a call raises, and what would have to hold."""
        if self._failed:
            return
        self._failed = True
        leaves = pytree.tree_leaves((args, kwargs), is_leaf=_is_ref)
        operands = [r for r in leaves if _is_ref(r)]
        try:
            self.blamed = self._symbols(operands)
            shapes = [self._shape(r) for r in operands]
            self.missed = (*self._missed(shapes), *self._unlike_views(op, shapes, args))
        except (DifferentError, IndexError, KeyError):  # a tensor of a call that is not compared
            self.blamed, self.missed = frozenset(), ()

    def _unlike_views(self, op: Any, shapes: list[Shape], args: Any) -> Iterator[Condition]:
        """What has to hold for a view to have as many entries as its tensor, for each free size on its own."""
        if op._opname not in ("view", "reshape") or len(self.merged) >= len(self._first.calls):
            return
        one = self._first.calls[len(self.merged)]
        sizes = self._merge(op, one.args[1], args[1]) if one.op is op else [-1]
        if -1 in sizes:
            return
        for symbol in sorted(self._symbols([r for r in args if _is_ref(r)])):
            old, new = (product(self._space, _entries(x, symbol)) for x in (shapes[0], sizes))
            if isinstance(old, Formula) and isinstance(new, Formula) and old is not new:
                a, b = (int(x.values[0] or 1) for x in (old, new))
                sides = (product(self._space, [x, n // gcd(a, b)]) for x, n in ((old, b), (new, a)))
                yield Condition(operator.eq, *sides)

    def _missed(self, shapes: list[Shape]) -> list[Condition]:
        """Equalities between axes of operands that hold at the example, and not in this run."""
        found: dict[str, Condition] = {}
        for k, a in enumerate(shapes):
            for b in shapes[k + 1 :]:
                for m, n in zip(reversed(a), reversed(b), strict=False):
                    was = value_of(m, 0) == value_of(n, 0)
                    if was and value_of(m, 1) != value_of(n, 1):
                        one, two = (m, n) if isinstance(m, Formula) else (n, m)
                        condition = Condition(operator.eq, one, two)
                        found[str(condition)] = condition
        return [*found.values()]


def _entries(numbers: Sequence[Any], symbol: str) -> list[Any]:
    return [n for n in numbers if isinstance(n, Formula) and symbol in n.symbols]


def _is_ref(x: Any) -> bool:
    return isinstance(x, Ref)


def _named(op: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name, with defaults."""
    schema = op._schema.arguments
    names = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**names, **dict(zip((a.name for a in schema), args, strict=False)), **kwargs}


def _shown(x: Any) -> str:
    return str(x) if isinstance(x, int | float | str) else type(x).__name__


def _line() -> str:
    """Where the code of the network is, outside torch and this package."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("torch.", "fxprune.capture", "fxprune.torch_private")):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
