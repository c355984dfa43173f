"""JSON that anybody may have written: bounded, and checked value by value before anything is built from it.

One reader for every file of fxprune's own: plans, saved programs, reports, histories, reproducers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fxprune.errors import FxpruneError
from fxprune.files.staging import write_whole

LARGEST = 64 << 20  # bytes of a file
DEEPEST = 100
_INT64 = 1 << 63


class Document:
    """Where values come from, and which error says that one of them is wrong.

    Args:
        source: the file, or what stands for it.
        error: class of the errors.
    """

    def __init__(self, source: str, error: type[FxpruneError]) -> None:
        self.source, self.error = source, error

    def read(self, path: Path) -> Entry:
        """The outermost value of a file.

        Raises:
            FxpruneError: the file is missing, too large, no text or no JSON; of the document's class.
        """
        return self.parse(self.text(path))

    def text(self, path: Path) -> str:
        """A file of UTF-8; errors as of `read`."""
        try:
            with path.open("rb") as stream:
                data = stream.read(LARGEST + 1)
            if len(data) > LARGEST:
                raise self.error(
                    f"{path.name} is too large",
                    where=self.source,
                    why=f"it has more than {LARGEST:,} bytes, which none of fxprune's has",
                )
            return data.decode("utf-8")
        except (OSError, ValueError) as error:
            raise self.error(
                f"cannot read {printable(path.name)}",
                where=printable(self.source),
                why=getattr(error, "strerror", None) or str(error),
            ) from error

    def write(self, path: Path, text: str) -> None:
        """Writes a file of UTF-8, which is complete or what it was.

        Raises:
            FxpruneError: it cannot be written; of the document's class.
        """
        try:
            data = text.encode("utf-8")
            write_whole(path, data)
        except (OSError, ValueError) as error:
            raise self.error(
                f"cannot write {printable(path.name)}",
                where=printable(self.source),
                why=getattr(error, "strerror", None) or str(error),
                do="name a file in a folder that is there and may be written to",
            ) from error

    def parse(self, text: str, *, nan: bool = False) -> Entry:
        """The outermost value of a text.

        Args:
            text: JSON.
            nan: whether NaN and Infinity may stand where numbers do.
        """
        constants: dict[str, Any] = {} if nan else {"parse_constant": _refuse_constant}
        try:
            value = json.loads(
                text, object_pairs_hook=_no_repeats, parse_float=_finite, **constants
            )
        except (ValueError, RecursionError) as error:
            raise self.error(
                f"{Path(self.source).name} is truncated, or not valid JSON",
                where=self.source,
                why=str(error),
                do="save it again",
            ) from error
        return Entry(value, self)


class Entry:
    """One value of a document; every method fails with the way to it where it is something else.

    Attributes:
        value: plain data, not checked.
    """

    __slots__ = ("_above", "_depth", "_document", "_key", "value")
    _depth: int

    def __init__(
        self, value: Any, document: Document, above: Entry | None = None, key: object = ""
    ) -> None:
        self.value, self._document, self._above, self._key = value, document, above, key
        self._depth = 0 if above is None else above._depth + 1
        if self._depth > DEEPEST:
            self.fail("is nested too deep", f"at most {DEEPEST} levels are read")

    @property
    def key(self) -> str:
        """The way to the value from the top."""
        parts: list[str] = []
        entry: Entry | None = self
        while entry is not None and entry._above is not None:
            key = entry._key
            parts.append(f"entry {key}" if isinstance(key, int) else str(key)[:80])
            entry = entry._above
        return ", ".join(reversed(parts)) or "top level"

    def called(self, key: str) -> Entry:
        """The same value, by a name that says more than its key."""
        return Entry(self.value, self._document, self._above, key)

    def record(self, *required: str, optional: Iterable[str] = ()) -> dict[str, Entry]:
        """The values of an object that has these keys and no others."""
        found, known = self.mapping(), (*required, *optional)
        wrong = [f"lacks {k!r}" for k in required if k not in found]
        wrong += [f"has an unknown key {k[:80]!r}" for k in found if k not in known]
        if wrong:
            self.fail(" and ".join(wrong[:4]), f"the keys are {', '.join(known)}")
        return found

    def mapping(self) -> dict[str, Entry]:
        """The values of an object, whatever its keys are."""
        if not isinstance(self.value, dict):
            self._wrong("an object {...}")
        return {k: Entry(v, self._document, self, k) for k, v in self.value.items()}

    def items(self, length: int | None = None) -> list[Entry]:
        """The values of a list."""
        if not isinstance(self.value, list):
            self._wrong("a list [...]")
        if length not in (None, len(self.value)):
            self.fail(f"has {len(self.value)} values", f"write {length}")
        return [Entry(v, self._document, self, i) for i, v in enumerate(self.value)]

    def text(self, choices: Sequence[str] = ()) -> str:
        """A text; one of the choices, where there are any."""
        if not isinstance(self.value, str):
            self._wrong("a text")
        if not self.value.isascii() and any("\ud800" <= c <= "\udfff" for c in self.value):
            self.fail("holds half a character", "write UTF-8")
        if choices and self.value not in choices:
            self.fail(f"is {self.value[:80]!r}", f"it is one of {', '.join(choices)}")
        return self.value

    def integer(self, low: int = -_INT64, high: int = _INT64 - 1) -> int:
        """A whole number, both bounds included."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self._wrong("a whole number")
        if not low <= self.value <= high:
            self.fail(f"is {_shown(self.value)}", f"write a whole number from {low} to {high}")
        return self.value

    def number(self) -> float:
        """A number; not finite where the document was read so."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            self._wrong("a number")
        if isinstance(self.value, int):
            return float(self.integer(-(10**300), 10**300))
        return self.value

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            self._wrong("true or false")
        return self.value

    def fail(self, what: str, do: str) -> NoReturn:
        """Raises the document's error about this value."""
        raise self._document.error(
            f"{self.key}: {what}",
            where=self._document.source,
            why="the file was altered or edited wrongly",
            do=do,
        )

    def _wrong(self, wanted: str) -> NoReturn:
        self.fail(f"is {_shown(self.value)}", f"write {wanted}")


def _shown(value: object) -> str:
    """A value, short; what it holds is not gone into, however deep it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        return "a number of very many digits"
    return json.dumps(value)[:40]


def _no_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [k for k, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def printable(path: str) -> str:
    """A path that every terminal can show, the end of one that is very long."""
    return path.encode("utf-8", "backslashreplace").decode()[-240:]
