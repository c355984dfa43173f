"""A file of measured times, which outlives the process."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from platformdirs import user_cache_path

from fxprune.errors import LoadError, OptionError
from fxprune.files.document import Document
from fxprune.files.staging import alone
from fxprune.remark import Remark

VARIABLE = "FXPRUNE_LATENCY_CACHE"
FORMAT, VERSION = "fxprune-latencies", 1
Times = dict[str, list[float]]


def default_file() -> Path:
    """The file that the environment variable names; else one in the cache folder of the platform."""
    given = os.environ.get(VARIABLE, "").strip()
    return Path(given) if given else user_cache_path("fxprune") / "latencies.json"


class TimeCache:
    """Lists of milliseconds or ratios by text keys, read from a file at first use.

    Args:
        path: the file; it need not be there.

    Attributes:
        remarks: on a file that could not be read or written; what it should hold is measured again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.remarks: list[Remark] = []
        self._known: Times | None = None
        self._fresh: Times = {}

    def get(self, key: str) -> list[float] | None:
        """What is known under a key."""
        if self._known is None:
            self._known = self._read()
        return self._known.get(key)

    def put(self, key: str, values: Iterable[float]) -> list[float]:
        """Keeps values under a key, for now in memory; returns them."""
        found = self._fresh[key] = [float(f"{v:.6g}") for v in values]
        if self._known is None:
            self._known = self._read()
        self._known[key] = found
        return found

    def save(self) -> None:
        """Adds what is new to the file, and keeps what others have added since it was read."""
        if not self._fresh:
            return
        document = Document(str(self.path), LoadError)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with alone(self.path.parent):
                times = {**self._read(), **self._fresh}
                whole = {"format": FORMAT, "version": VERSION, "times": times}
                document.write(self.path, json.dumps(whole, indent=0, sort_keys=True))
        except (LoadError, OSError) as error:
            what = "the measured times could not be kept"
            do = f"name another file: {VARIABLE}, or fp.LatencyTable(path)"
            self._remark("not-kept", what, str(error), do)
        self._fresh = {}

    def _read(self) -> Times:
        if not self.path.exists():
            return {}
        try:
            top = Document(str(self.path), LoadError).read(self.path)
            facts = top.record("format", "version", "times")
            facts["format"].text([FORMAT])
            facts["version"].integer(VERSION, VERSION)
            times = {}
            for key, entry in facts["times"].mapping().items():
                times[key] = [e.number() for e in entry.items()]
                if not times[key] or not all(0 <= t < math.inf for t in times[key]):
                    entry.fail("holds no times", "delete the file")
        except LoadError as error:
            what = "the file of measured times is damaged; they are measured again"
            self._remark("cache-damaged", what, str(error), "nothing: the file is written anew")
            return {}
        return times

    def _remark(self, word: str, what: str, why: str, do: str) -> None:
        if not any(r.code == f"latency.{word}" for r in self.remarks):
            self.remarks.append(Remark("missed", f"latency.{word}", str(self.path), what, why, do))


def cache_at(path: str | os.PathLike[str] | None) -> TimeCache:
    """The cache in a file, by default the user's.

    Raises:
        OptionError: the path is a folder.
    """
    found = default_file() if path is None else Path(path)
    if found.is_dir():
        raise OptionError(f"{found} is a folder", where="path", do="name a file in it")
    return TimeCache(found)
