"""Sizes as formulas of the free sizes of a network's inputs, and integers that know theirs.

A formula has its value at a few points, each of which gives every free size a number. Two formulas that agree at all
of them are taken for one. What the code of a network computes from the sizes that it reads is computed at every
point; where it compares them, the outcome at the example becomes a condition on the free sizes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import sympy
import torch

from fxprune.torch_private import SIZE_FUNCTIONS

Point = Mapping[str, int]
Value = int | float | None  # None: not defined there, such as a quotient by 0
_F = SIZE_FUNCTIONS


class DifferentError(Exception):
    """The network does something else at the second sizes than at those of the example.

    Attributes:
        reason: what, in words.
        symbols: the free sizes that may be to blame; empty where any may be.
        of_kernels: whether the kernels may be to blame, which differ with and without gradients.
        by_chance: whether other lengths may do, since two formulas have the same values in both runs.
    """

    def __init__(
        self,
        reason: str,
        symbols: frozenset[str] = frozenset(),
        *,
        of_kernels: bool = False,
        by_chance: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.symbols = reason, symbols
        self.of_kernels, self.by_chance = of_kernels, by_chance


def _real(x: Any) -> Any:
    return x if isinstance(x, sympy.Float) else _F["ToFloat"](x)


def _quotient(a: Any, b: Any) -> Any:
    if a.is_integer and b.is_integer:
        return _F["IntTrueDiv"](a, b)
    return _F["FloatTrueDiv"](a, b)


# What formulas consist of, and the function of torch's symbolic sizes that computes the same.
_SYMBOLIC: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.add: operator.add,
    operator.sub: operator.sub,
    operator.mul: operator.mul,
    operator.neg: operator.neg,
    operator.abs: lambda a: _F["Max"](a, -a),
    operator.floordiv: _F["FloorDiv"],
    operator.mod: _F["PythonMod"],
    operator.truediv: _quotient,
    operator.pow: lambda a, b: _F["PowByNatural"](a, b) if b.is_integer else _F["FloatPow"](a, b),
    math.floor: _F["FloorToInt"],
    math.ceil: _F["CeilToInt"],
    math.trunc: _F["TruncToInt"],
    torch.sym_float: _real,
}
_SIGNS: dict[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.truediv: "/",
    operator.pow: "**",
}
_RELATIONS: dict[Callable[..., bool], tuple[Callable[..., bool], str, str]] = {
    operator.eq: (operator.ne, "Equality", "=="),
    operator.ne: (operator.eq, "Unequality", "!="),
    operator.lt: (operator.ge, "StrictLessThan", "<"),
    operator.ge: (operator.lt, "GreaterThan", ">="),
    operator.gt: (operator.le, "StrictGreaterThan", ">"),
    operator.le: (operator.gt, "LessThan", "<="),
}


class Formula:
    """A number that is computed from free sizes.

    Attributes:
        values: its value at each point; the first is that of the example, the second that of the second run.
        symbols: the names of the free sizes in it.
        name: the name of a free size; "" for what is computed.
        function: what computes it; None for a free size.
        operands: formulas and numbers that it is computed from.
    """

    __slots__ = ("_expression", "function", "name", "operands", "symbols", "values")

    def __init__(
        self,
        values: tuple[Value, ...],
        name: str = "",
        function: Callable[..., Any] | None = None,
        operands: tuple[Any, ...] = (),
        expression: Any = None,
    ) -> None:
        self.values, self.name, self.function, self.operands = values, name, function, operands
        of = (x.symbols for x in operands if isinstance(x, Formula))
        self.symbols: frozenset[str] = frozenset([name] if name else []).union(*of)
        self._expression = expression

    @property
    def pair(self) -> tuple[Value, Value]:
        """The values in the two runs."""
        return self.values[0], self.values[1]

    @property
    def expression(self) -> Any:
        """The formula as an expression of sympy."""
        if self._expression is None:
            given = [
                x.expression if isinstance(x, Formula) else sympy.sympify(x) for x in self.operands
            ]
            if any(isinstance(x, sympy.Float) for x in given):
                given = [_real(x) for x in given]
            self._expression = _SYMBOLIC[self.function](*given)  # type: ignore[index]
        return self._expression

    def at(self, point: Point) -> Value:
        """The value where the free sizes have the given values."""
        if self.name:
            return point[self.name]
        return _applied(self.function, [value_at(x, point) for x in self.operands])

    def __str__(self) -> str:
        if self.name:
            return self.name
        shown = [_shown(x) for x in self.operands]
        sign = _SIGNS.get(self.function)
        if sign is not None and len(shown) == 2:
            return f"{shown[0]} {sign} {shown[1]}"
        return f"{getattr(self.function, '__name__', self.function)}({', '.join(shown)})"


def _shown(x: Any) -> str:
    compound = isinstance(x, Formula) and not x.name and len(x.operands) == 2
    return f"({x})" if compound else str(x)


def value_at(x: Any, point: Point) -> Value:
    """The value of a formula, or of a number, at a point."""
    return x.at(point) if isinstance(x, Formula) else x


def _applied(function: Any, values: list[Value]) -> Value:
    try:
        return function(*values)  # type: ignore[no-any-return]
    except (ZeroDivisionError, OverflowError, TypeError, ValueError):
        return None  # nothing is defined where an operand is not


class Condition(NamedTuple):
    """A comparison of two formulas that holds at the example.

    Attributes:
        relation: a comparison of `operator`.
        one: a formula or number.
        two: a formula or number.
        line: where the network makes it; "" where an operator does.
    """

    relation: Callable[..., bool]
    one: Any
    two: Any
    line: str = ""

    @property
    def symbols(self) -> frozenset[str]:
        """The names of the free sizes in it."""
        return frozenset[str]().union(*(x.symbols for x in self[1:3] if isinstance(x, Formula)))

    def holds_at(self, point: Point) -> bool:
        """Whether it holds where the free sizes have the given values."""
        return bool(_applied(self.relation, [value_at(x, point) for x in self[1:3]]))

    @property
    def expression(self) -> Any:
        """The condition as an expression of sympy."""
        one, two = (x.expression if isinstance(x, Formula) else sympy.sympify(x) for x in self[1:3])
        return _F[_RELATIONS[self.relation][1]](one, two)

    def __str__(self) -> str:
        return f"{self.one} {_RELATIONS[self.relation][2]} {self.two}"


class Space:
    """All formulas of one second run, and the conditions under which it is like the first.

    Attributes:
        conditions: those that hold in both runs.
        violated: those that do not hold in the second.
        lost: the free sizes of which a plain number was made.
        plain: the formulas of which one was made, by the number.

    Args:
        points: values of the free sizes, at the example, in the second run, and further ones.
        patient: whether other lengths may be tried where a number could follow several formulas; else these have to be
            equal.
    """

    def __init__(self, points: Sequence[Point], *, patient: bool = False) -> None:
        self.points, self.patient = points, patient
        self.conditions: dict[Any, Condition] = {}
        self.violated: dict[Any, Condition] = {}
        self.lost: set[str] = set()
        self.plain: dict[Value, Formula] = {}
        self.line: Callable[[], str] = lambda: ""
        self._open = True
        self._of_values: dict[tuple[Value, ...], Formula] = {}
        self._of_pair: dict[tuple[Value, Value], list[Formula]] = {}

    def close(self) -> None:
        """Ends the run: lengths that a model keeps are plain numbers from here on."""
        self._open = False

    def symbol(self, name: str, expression: Any) -> Formula:
        """A free size."""
        values = tuple(point[name] for point in self.points)
        return self._add(Formula(values, name=name, expression=expression))

    def make(self, function: Callable[..., Any], *operands: Any) -> Any:
        """A formula of others, or the number that it always is."""
        rows = [x.values if isinstance(x, Formula) else (x,) * len(self.points) for x in operands]
        values = tuple(_applied(function, [*v]) for v in zip(*rows, strict=True))
        known = self._of_values.get(values)
        if known is None:
            known = self._add(Formula(values, function=function, operands=operands))
        if values.count(values[0]) == len(values) and known.expression.is_number:
            return values[0]
        return known

    def _add(self, formula: Formula) -> Formula:
        self._of_values[formula.values] = formula
        self._of_pair.setdefault(formula.pair, []).append(formula)
        return formula

    def find(self, one: Value, two: Value) -> Formula | None:
        """The formula that has the given values in the two runs; None if there is none.

        Where there are several, the graph holds where they are equal.

        Raises:
            DifferentError: there is more than one, and other lengths may tell them apart.
        """
        found = [f for f in self._of_pair.get((one, two), ()) if type(f.values[0]) is type(one)]
        for other in found[1:]:
            self._agree(found[0], other)
        return found[0] if found else None

    def any(self, one: int, two: int) -> Any:
        """A formula, or a multiple of one, that has the given values in the two runs; the first of several."""
        for first, second in list(self._of_pair):
            factor = one // first if isinstance(first, int) and first > 0 else 0
            if factor and (factor * first, factor * second) == (one, two):  # type: ignore[operator]
                return self.make(operator.mul, self._of_pair[first, second][0], factor)
        return None

    def _agree(self, one: Formula, two: Formula) -> None:
        """Requires two formulas to be equal, as they are wherever the conditions so far hold."""
        known = list(self.conditions.values())
        places = [
            i for i, p in enumerate(self.points) if i > 1 and all(c.holds_at(p) for c in known)
        ]
        if self.patient and not (places and all(one.values[i] == two.values[i] for i in places)):
            text = f"a number may follow {one} or {two}"
            raise DifferentError(text, one.symbols | two.symbols, by_chance=True)
        self.require(operator.eq, one, two)

    def find_multiple(self, one: int, two: int) -> Any:
        """The multiple of a formula that has the given values in the two runs, as `find` does."""
        found: dict[tuple[Value, ...], Formula] = {}
        for first, second in list(self._of_pair):
            factor = one // first if isinstance(first, int) and first > 0 else 0
            if factor and (factor * first, factor * second) == (one, two):  # type: ignore[operator]
                for base in self._of_pair[first, second]:
                    made = self.make(operator.mul, base, factor)
                    found[made.values] = made
        every = [*found.values()]
        for other in every[1:]:
            self._agree(every[0], other)
        return next(iter(found.values()), None)

    def length(self, x: Any) -> Any:
        """What the code of a network is given: an integer or float that knows its formula."""
        if not isinstance(x, Formula):
            return x
        if x.values[0] == x.values[1]:  # another value at other sizes would go unnoticed
            self.require(operator.eq, x, x.values[0])
            return x.values[0]
        value = x.values[1]
        if isinstance(value, int):
            return Length(value, x, self)
        return value if value is None else Real(value, x, self)

    def require(self, relation: Callable[..., bool], one: Any, two: Any) -> None:
        """Adds a condition, which holds at the example."""
        self._add_condition(Condition(relation, one, two, self.line()))

    def compare(self, relation: Callable[..., bool], one: Any, two: Any) -> bool:
        """The outcome of a comparison at the example, which becomes a condition.

        So the second run takes the way of the first, and shows all that it would have to satisfy.
        """
        run = 0 if self._open else 1
        outcome = bool(relation(value_of(one, run), value_of(two, run)))
        kind = relation if outcome else _RELATIONS[relation][0]
        self._add_condition(Condition(kind, one, two, self.line() if self._open else ""))
        return outcome

    def _add_condition(self, condition: Condition) -> None:
        one, two = condition[1:3]
        alike = isinstance(one, Formula) and one is two
        if alike or not self._open or not condition.symbols:
            return
        key = (condition.relation, *(x.values if isinstance(x, Formula) else x for x in (one, two)))
        if key in self.conditions or key in self.violated:
            return
        if not condition.relation(value_of(one, 1), value_of(two, 1)):
            self.violated[key] = condition
        elif condition.expression is not sympy.true:
            self.conditions[key] = condition

    def lose(self, x: Formula) -> None:
        """Notes that a plain number was made of a formula: comparisons of it are not seen."""
        if self._open:
            self.lost |= x.symbols
            self.plain[x.values[1]] = x

    def __iter__(self) -> Iterator[Formula]:
        return iter([*self._of_values.values()])


def value_of(x: Any, run: int) -> Any:
    """The value of a formula, or of a number, in one of the two runs."""
    return x.values[run] if isinstance(x, Formula) else x


def _formula(x: Any, space: Space) -> Any:
    """The formula of an operand of Python code; NotImplemented for what is no number.

    A plain number that was made of a length before is that length again.
    """
    if isinstance(x, Length | Real):
        return x.formula
    if type(x) not in (int, float, bool):
        return NotImplemented
    return space.plain.get(x, x) if type(x) is not bool else x


def _binary(function: Callable[..., Any], *, turned: bool = False) -> Any:
    def method(self: Any, other: Any) -> Any:
        given = _formula(other, self.space)
        if given is NotImplemented:
            return NotImplemented
        pair = (given, self.formula) if turned else (self.formula, given)
        return self.space.length(self.space.make(function, *pair))

    return method


def _unary(function: Callable[..., Any]) -> Any:
    return lambda self, *_: self.space.length(self.space.make(function, self.formula))


def _compared(relation: Callable[..., bool]) -> Any:
    def method(self: Any, other: Any) -> Any:
        given = _formula(other, self.space)
        if given is NotImplemented:
            return NotImplemented
        return self.space.compare(relation, self.formula, given)

    return method


class _Number:
    """What `Length` and `Real` have in common: arithmetic gives such numbers again, comparisons conditions."""

    formula: Formula
    space: Space

    __add__, __radd__ = _binary(operator.add), _binary(operator.add, turned=True)
    __sub__, __rsub__ = _binary(operator.sub), _binary(operator.sub, turned=True)
    __mul__, __rmul__ = _binary(operator.mul), _binary(operator.mul, turned=True)
    __mod__, __rmod__ = _binary(operator.mod), _binary(operator.mod, turned=True)
    __pow__, __rpow__ = _binary(operator.pow), _binary(operator.pow, turned=True)
    __truediv__, __rtruediv__ = _binary(operator.truediv), _binary(operator.truediv, turned=True)
    __floordiv__ = _binary(operator.floordiv)
    __rfloordiv__ = _binary(operator.floordiv, turned=True)
    __neg__, __abs__ = _unary(operator.neg), _unary(operator.abs)
    __lt__, __le__ = _compared(operator.lt), _compared(operator.le)
    __gt__, __ge__ = _compared(operator.gt), _compared(operator.ge)
    __eq__, __ne__ = _compared(operator.eq), _compared(operator.ne)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __bool__(self) -> bool:
        return self.space.compare(operator.ne, self.formula, 0)

    def __pos__(self) -> Any:
        return self

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, _memo: Any) -> Any:
        return self


class Length(_Number, int):
    """An integer of the second run that knows how it is computed from the free sizes."""

    def __new__(cls, value: int, formula: Formula, space: Space) -> Self:
        """Makes the integer."""
        new = int.__new__(cls, value)
        new.formula, new.space = formula, space
        return new

    __hash__ = int.__hash__

    def __int__(self) -> int:
        self.space.lose(self.formula)
        return int.__index__(self)

    def __float__(self) -> float:
        self.space.lose(self.formula)
        return float(int.__index__(self))

    def __floor__(self) -> Length:
        return self

    __ceil__ = __trunc__ = __floor__

    def __round__(self, *_: Any) -> Length:
        return self

    def __reduce__(self) -> Any:
        return int, (int.__index__(self),)

    def bit_length(self) -> int:
        """The number of bits of the plain integer."""
        self.space.lose(self.formula)
        return int.__index__(self).bit_length()


class Real(_Number, float):
    """A float of the second run that knows how it is computed from the free sizes."""

    def __new__(cls, value: float, formula: Formula, space: Space) -> Self:
        """Makes the float."""
        new = float.__new__(cls, value)
        new.formula, new.space = formula, space
        return new

    __hash__ = float.__hash__
    __floor__, __ceil__, __trunc__ = _unary(math.floor), _unary(math.ceil), _unary(math.trunc)

    def __int__(self) -> int:
        """The whole part: as a plain number, it is found again by its values in both runs."""
        whole = self.space.make(math.trunc, self.formula)
        if isinstance(whole, Formula):
            self.space.lose(whole)
            if whole.values[0] == whole.values[1]:
                self.space.require(operator.eq, whole, whole.values[0])
        return int(float.__trunc__(self))

    def __float__(self) -> float:
        self.space.lose(self.formula)
        return float.__add__(self, 0.0)

    def __round__(self, *_: Any) -> Any:
        self.space.lose(self.formula)
        return float.__round__(self, *_)

    def __reduce__(self) -> Any:
        return float, (float.__add__(self, 0.0),)
