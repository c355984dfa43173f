"""Sizes that are known at run time only, as JSON: `["Mul", 6, "s77"]` is six times the size `s77`.

They are rebuilt from a closed list of functions; nothing of a file is ever parsed as Python.
"""

from __future__ import annotations

import re
from typing import Any

import sympy
import torch

from fxprune.errors import LoadError
from fxprune.files.document import Entry
from fxprune.torch_private import SIZE_FUNCTIONS, NamedSizes, Symbol, symbols_of

_NAME = re.compile(r"[a-z]+\d{1,9}")
_POWERS = {"Pow", "PowByNatural", "FloatPow"}
_LARGEST_POWER = 16
_MOST_TERMS = 256
_LARGEST = 1 << 63

Number = torch.SymInt | torch.SymFloat | torch.SymBool


class SavedSizes:
    """Writes sizes down, and gathers the symbols in them."""

    def __init__(self) -> None:
        self._symbols: dict[str, Symbol] = {}

    def symbols(self) -> dict[str, dict[str, Any]]:
        """What is known of each symbol, as JSON."""
        return {name: facts._asdict() for name, facts in self._symbols.items()}

    def write(self, number: Any) -> Any:
        """A number as JSON.

        Raises:
            LoadError: it is computed in a way that cannot be written down.
        """
        if not isinstance(number, Number):
            return number
        for name, facts in symbols_of(number).items():
            self._symbols.setdefault(name, facts)
        return _written(number.node.expr)


def _written(x: Any) -> Any:
    if x.is_Symbol:
        return str(x)
    if x.is_Integer:
        return int(x)
    if x in (sympy.true, sympy.false):
        return bool(x)
    if x.is_Float:
        return ["Float", repr(float(x))]
    if x.is_Rational:
        return ["Rational", int(x.p), int(x.q)]
    name = type(x).__name__
    if SIZE_FUNCTIONS.get(name) is not type(x):
        raise LoadError(
            "a size cannot be saved",
            where=str(x),
            why=f"{name} is no function of sizes that is known",
        )
    return [name, *map(_written, x.args)]


class LoadedSizes(NamedSizes):
    """Reads sizes that `SavedSizes` wrote.

    Args:
        symbols: what is known of each symbol.
    """

    def __init__(self, symbols: Entry) -> None:
        super().__init__()
        self._known = {name: self._symbol(name, e) for name, e in symbols.mapping().items()}
        self._read: dict[str, Any] = {}

    def _symbol(self, name: str, entry: Entry) -> Any:
        if not _NAME.fullmatch(name):
            entry.fail("is no name of a size", "write a letter and a number")
        facts = entry.record(*Symbol._fields)
        hint, low, high = (
            None if facts[k].value is None else facts[k].integer() for k in ("hint", "low", "high")
        )
        least, most = -_LARGEST if low is None else low, _LARGEST if high is None else high
        if not least <= (least if hint is None else hint) <= most:
            entry.fail("has bounds that exclude its value", "write low <= hint <= high")
        return self.add(name, Symbol(hint, low, high, facts["positive"].flag()))

    def read(self, entry: Entry) -> Any:
        """The number of an entry."""
        if isinstance(entry.value, int):  # most sizes
            return entry.value if isinstance(entry.value, bool) else entry.integer()
        text = str(entry.value)
        if text not in self._read:
            try:
                self._read[text] = self.number(self._expression(entry, [_MOST_TERMS]))
            except LoadError:
                raise
            except Exception as error:  # sympy says in many ways that 1 // 0 is nothing
                entry.fail(f"is no size: {type(error).__name__}: {error}", "save it again")
        return self._read[text]

    def size(self, entry: Entry) -> Any:
        """The length of an axis, or a stride."""
        number = self.read(entry)
        if isinstance(number, bool) or not isinstance(number, int | torch.SymInt):
            entry.fail("is no length", "write a whole number")
        if isinstance(number, int) and number < 0:
            entry.fail("is negative", "write 0 or more")
        return number

    def _expression(self, entry: Entry, left: list[int]) -> Any:
        left[0] -= 1
        if left[0] < 0:
            entry.fail("is part of a size of too many terms", f"at most {_MOST_TERMS} are read")
        if isinstance(entry.value, str):
            if entry.value not in self._known:
                entry.fail(f"is {entry.value[:40]!r}, no symbol", "list it among the symbols")
            return self._known[entry.value]
        if isinstance(entry.value, bool):
            return sympy.true if entry.value else sympy.false
        if isinstance(entry.value, int):
            return sympy.Integer(entry.integer())
        return self._computed(entry, left)

    def _computed(self, entry: Entry, left: list[int]) -> Any:
        name, *arguments = entry.items() or [entry]
        kind = name.text(("Float", "Rational", *SIZE_FUNCTIONS))
        if kind == "Float":
            return sympy.Float(_float(arguments[0].text()) if len(arguments) == 1 else name.text())
        if kind == "Rational":
            return sympy.Rational(*(a.integer() for a in arguments))
        values = [self._expression(a, left) for a in arguments]
        if kind in _POWERS and not (values[1].is_number and abs(values[1]) <= _LARGEST_POWER):
            entry.fail("is too large a power", f"at most {_LARGEST_POWER} is read")
        found = SIZE_FUNCTIONS[kind](*values)
        if found.is_Integer and abs(found) >= _LARGEST:
            entry.fail("is too large a size", "save it again")
        return found


def _float(text: str) -> float:
    return float(text[:40])
