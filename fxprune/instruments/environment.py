"""Reads the options of a run from environment variables, so that the code need not change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fxprune.errors import OptionError
from fxprune.instruments.printing import PrintGraph
from fxprune.instruments.reproduce import Reproducer
from fxprune.instruments.timing import TimePasses
from fxprune.pipeline.instrument import Instrument
from fxprune.verify import Verify

PREFIX = "FXPRUNE_"


@dataclass(frozen=True)
class Settings:
    """The options that the environment sets.

    Attributes:
        instruments: instruments to add to those of the call.
        disable: globs of passes to leave out, in addition to those of the call.
        limit: how many single rewrites to apply, if the call does not say.
        verify: how to check each pass, see `fp.run`; overrides the call unless None.
    """

    instruments: tuple[Instrument, ...] = ()
    disable: tuple[str, ...] = ()
    limit: int | None = None
    verify: Verify | None = None


def read_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Reads the FXPRUNE_ variables, which docs/pipelines.md lists.

    Raises:
        OptionError: a variable has a value that cannot be used.
    """
    given = _Given(os.environ if environ is None else environ)
    instruments: list[Instrument] = []
    before, after = given.text("PRINT_BEFORE"), given.text("PRINT_AFTER")
    changed = bool(given.switch("PRINT_CHANGED"))
    if before or after or changed:
        instruments.append(PrintGraph(before, after, changed=changed))
    if given.switch("TIME_PASSES"):
        instruments.append(TimePasses())
    if folder := given.text("REPRODUCER"):
        instruments.append(Reproducer(folder))
    names = (name.strip() for name in given.text("DISABLE").split(","))
    return Settings(
        tuple(instruments),
        tuple(filter(None, names)),
        given.number("BISECT_LIMIT"),
        given.verify(),
    )


class _Given:
    """The typed values of the variables."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str:
        return self._environ.get(PREFIX + name, "").strip()

    def switch(self, name: str) -> bool | None:
        if (text := self.text(name)) not in ("", "0", "1"):
            raise self._error(name, "set it to 1 or 0")
        return bool(int(text)) if text else None

    def verify(self) -> Verify | None:
        known: dict[str, Verify | None] = {"": None, "0": False, "1": True}
        known |= {"local": "local", "full": "full"}
        if (text := self.text("VERIFY")) not in known:
            raise self._error("VERIFY", "set it to local, full or 0")
        return known[text]

    def number(self, name: str) -> int | None:
        if (text := self.text(name)) and not text.isdecimal():
            raise self._error(name, "set it to a number of rewrites, at least 0")
        return int(text) if text else None

    def _error(self, name: str, do: str) -> OptionError:
        return OptionError(
            f"{PREFIX}{name}={self.text(name)} cannot be used",
            where=f"environment variable {PREFIX}{name}",
            do=do,
        )
