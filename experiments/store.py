"""Where runs lie: their rows, their checkpoints, and the networks that came out of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.task import Arm, Task

Row = dict[str, Any]


def name_of(task: Task, arm: Arm, seed: int) -> str:
    """The name of a run."""
    return f"{task.name}/{arm.name}/{seed}"


@dataclass(frozen=True)
class Peer:
    """What a control is told of the run that it is like.

    Attributes:
        row: of that run.
        folder: its finished networks: `structure`, which trains, and `final`, which is for use.
    """

    row: Row
    folder: Path


@dataclass(frozen=True)
class Store:
    """A folder of runs.

    Attributes:
        folder: of rows, checkpoints and networks.
        full: whether it is about the papers' lengths.
    """

    folder: Path
    full: bool = False

    def rows(self, tasks: Iterable[Task]) -> dict[str, Row]:
        """The newest good row of each run, by name; only of the regimes that tasks have today."""
        regimes = {t.name: t.regime(t.full if self.full else t.quick) for t in tasks}
        rows = (r for r in self._read("rows.jsonl") if r["ok"] and r["full"] == self.full)
        return {r["name"]: r for r in rows if r.get("regime") == regimes.get(r["task"], "none")}

    def latencies(self, rows: dict[str, Row]) -> dict[str, Row]:
        """The newest latencies of each run that has a row; those of an older run of its name do not count."""
        found = (r for r in self._read("latency.jsonl") if r["name"] in rows)
        return {r["name"]: r for r in found if r["of"] == rows[r["name"]]["made"]}

    def add(self, file: str, row: Row) -> None:
        """Puts a line behind the others."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / file).open("a") as lines:
            lines.write(json.dumps(row) + "\n")

    def running(self, name: str) -> Path:
        """Where a run keeps its checkpoints."""
        return self.folder / ".running" / self._plain(name)

    def finished(self, name: str) -> Path:
        """Where a run leaves its networks."""
        return self.folder / ".finished" / self._plain(name)

    def _plain(self, name: str) -> str:
        return re.sub(r"[^\w.-]+", "_", f"{name}-{'full' if self.full else 'quick'}")

    def _read(self, file: str) -> list[Row]:
        path = self.folder / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
