"""Records the course of training by epoch: a table, JSON lines, plots and TensorBoard."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from tabulate import tabulate

from fxprune.analysis.cache import remember, solved
from fxprune.analysis.group import find_groups
from fxprune.errors import OptionError
from fxprune.files.document import Document, Entry
from fxprune.graph.program import Program
from fxprune.report import summary
from fxprune.report.figure import new_figure


@dataclass(frozen=True)
class Epoch:
    """One epoch, a row of the table.

    Attributes:
        epoch: its number, from 0.
        loss: the mean loss over the samples of its steps; None if none was given.
        accuracy: the share of correct samples, from 0 to 1; None if none was given.
        parameters: the number of parameter elements at its end.
        macs: the multiply-accumulates of a forward pass of the example inputs at its end.
        layers: the number of modules with weights that multiply, at its end.
        units: the number of units that can still be removed, over all groups, at its end.
        steps: the number of steps.
        seconds_per_step: the median time between the ends of its steps, in seconds.
        extra: further numbers by name.
    """

    epoch: int
    loss: float | None
    accuracy: float | None
    parameters: int
    macs: int
    layers: int
    units: int
    steps: int
    seconds_per_step: float | None
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Size:
    """The size of a program; see `Epoch`.

    Attributes:
        parameters: the number of parameter elements.
        macs: multiply-accumulates.
        layers: the number of modules with weights.
        units: the number of units that can be removed.
    """

    parameters: int
    macs: int
    layers: int
    units: int


def size_of(program: Program) -> Size:
    """Returns the size of a program; it is computed once for each program."""
    return remember(program, "training.size", lambda: _size_of(program))


def _size_of(program: Program) -> Size:
    found = summary(program)
    layers = sum(1 for row in found.rows if row.parameters and row.macs)
    units = sum(map(len, find_groups(solved(program))))
    return Size(found.total.parameters, found.total.macs, layers, units)


class History:
    """Collects steps into epochs; prints as a table.

    If the file exists already, the history continues after its last line. A last line that a crash cut off is
    not read, with a warning; the next epoch takes its place.

    Args:
        path: a file of JSON lines, to which each epoch adds one; None to write nothing.
        tensorboard: a directory for TensorBoard.
        clock: returns the time in seconds; replaced in tests.

    Attributes:
        rows: the epochs so far.

    Raises:
        OptionError: TensorBoard is asked for and not installed, or the file holds something else or cannot
            be read or written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        tensorboard: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._path = None if path is None else Path(path)
        self.rows: list[Epoch] = []
        self._ending: _Ending | None = None
        if self._path is not None and self._path.exists():
            self.rows, self._ending = _read(self._path)
        self._writer = None if tensorboard is None else _tensorboard_writer(Path(tensorboard))
        self._clock = clock
        self.start_epoch()

    def start_epoch(self) -> None:
        """Starts the clock of the first step; only needed if time passes between epochs."""
        self._loss, self._right, self._samples, self._judged = 0.0, 0.0, 0, 0
        self._times: list[float] = []
        self._losses = 0
        self._last = self._clock()

    def step(self, loss: Any = None, *, correct: Any = None, samples: int = 1) -> None:
        """Records one step, at its end.

        Args:
            loss: the mean loss of its samples, a number or a tensor with one element; reading a tensor on an
                accelerator waits for the device.
            correct: the number of correct samples.
            samples: the number of samples.
        """
        if loss is not None:
            self._loss += float(loss) * samples
            self._losses += samples
        if correct is not None:
            self._right += float(correct)
            self._judged += samples
        now = self._clock()
        self._times.append(now - self._last)
        self._last = now

    def end_epoch(
        self, program: Program, *, accuracy: float | None = None, **extra: float
    ) -> Epoch:
        """Ends an epoch: measures the program, writes the row, and starts the next epoch.

        Args:
            program: the network at the end of the epoch.
            accuracy: the accuracy of the epoch where it was measured otherwise than by `step`, from 0 to 1.
            **extra: further numbers for the row.

        Raises:
            OptionError: a further number has the name of a column.
        """
        if taken := extra.keys() & {f.name for f in fields(Epoch)}:
            raise OptionError(
                f"these columns exist already: {', '.join(sorted(taken))}",
                do="give it another name",
            )
        size = size_of(program)
        row = Epoch(
            epoch=self.rows[-1].epoch + 1 if self.rows else 0,
            loss=self._loss / self._losses if self._losses else None,
            accuracy=self._right / self._judged if self._judged else accuracy,
            **asdict(size),
            steps=len(self._times),
            seconds_per_step=median(self._times) if self._times else None,
            extra={name: float(value) for name, value in extra.items()},
        )
        self.rows.append(row)
        if self._path is not None:
            _append(self._path, json.dumps(asdict(row)) + "\n", self._ending)
            self._ending = None
        self._write_scalars(row)
        self.start_epoch()
        return row

    def __str__(self) -> str:
        if not self.rows:
            return "no epoch yet"
        names = list(dict.fromkeys(n for row in self.rows for n in row.extra))
        header = ["epoch", "loss", "accuracy", "parameters", "MACs", "layers", "units", "s/step"]
        lines = [
            [
                row.epoch,
                _number(row.loss, ".4f"),
                _number(row.accuracy, ".2%"),
                f"{row.parameters:,}",
                f"{row.macs:,}",
                row.layers,
                row.units,
                _number(row.seconds_per_step, ".4f"),
                *(spell(row.extra[n]) if n in row.extra else "-" for n in names),
            ]
            for row in self.rows
        ]
        return tabulate(
            lines, [*header, *names], disable_numparse=True, colalign=["right"] * len(lines[0])
        )

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Plots loss, accuracy, remaining size and time per step to an image file, PNG by default.

        Raises:
            OptionError: matplotlib is not installed, or there is no epoch yet.
        """
        if not self.rows:
            raise OptionError("there is nothing to plot", do="end an epoch first")
        figure = new_figure("History.plot", 10, 7)
        epochs = [row.epoch for row in self.rows]
        first = self.rows[0]
        panels: dict[str, dict[str, list[float | None]]] = {
            "loss": {"": [row.loss for row in self.rows]},
            "accuracy": {"": [row.accuracy for row in self.rows]},
            "remaining share of the first epoch": {
                name: [getattr(row, name) / max(1, getattr(first, name)) for row in self.rows]
                for name in ("parameters", "macs", "layers", "units")
            },
            "seconds per step": {"": [row.seconds_per_step for row in self.rows]},
        }
        for axes, (title, curves) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            _draw(axes, title, epochs, curves)
        figure.savefig(Path(path))

    def _write_scalars(self, row: Epoch) -> None:
        if self._writer is None:
            return
        numbers = {
            f.name: getattr(row, f.name) for f in fields(row) if f.name not in ("epoch", "extra")
        }
        for name, value in {**numbers, **row.extra}.items():
            if value is not None:
                self._writer.add_scalar(f"fxprune/{name}", value, row.epoch)
        self._writer.flush()


def _draw(axes: Any, title: str, epochs: list[int], curves: dict[str, list[float | None]]) -> None:
    for name, values in curves.items():
        known = [(e, v) for e, v in zip(epochs, values, strict=True) if v is not None]
        axes.plot([e for e, _ in known], [v for _, v in known], marker=".", label=name or None)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    if len(curves) > 1:
        axes.legend()


def spell(value: float) -> str:
    """Formats a number for people: large numbers in full, others with four significant digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _number(value: float | None, spelling: str) -> str:
    return "-" if value is None else format(value, spelling)


class _Ending(NamedTuple):
    """The last line of a file, which no end of line follows.

    Attributes:
        start: where it starts, in bytes.
        line: what to write there before the next line: itself if it is whole, nothing if it was cut off.
    """

    start: int
    line: str


def _append(path: Path, line: str, ending: _Ending | None) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            if ending is not None:
                file.truncate(ending.start)
                line = ending.line + line
            file.write(line)
    except (OSError, ValueError) as error:
        raise OptionError(
            "the history cannot be written", where=str(path), why=str(error), do="give another path"
        ) from error


def _read(path: Path) -> tuple[list[Epoch], _Ending | None]:
    """The epochs of a file, and its last line if no end of line follows it."""
    file = Document(str(path), OptionError)
    try:
        *lines, last = file.text(path).split("\n")
    except OptionError as error:
        raise _no_history(str(path), error, "give another path") from error
    if not last:
        return _rows(file, lines), None
    start = sum(len(line.encode()) + 1 for line in lines)
    if not _is_cut_off(last):
        return _rows(file, [*lines, last]), _Ending(start, last + "\n")
    rows = _rows(file, lines)
    warnings.warn(
        f"{path}, line {len(lines) + 1}: the end of the line is missing, as after a crash. The epochs before it were "
        "read, and the next epoch takes its place.",
        stacklevel=3,
    )
    return rows, _Ending(start, "")


def _rows(file: Document, lines: list[str]) -> list[Epoch]:
    rows = []
    for line in lines:
        try:
            rows.append(_epoch(file.parse(line, nan=True)))
        except OptionError as error:
            where = f"line {len(rows) + 1}"
            do = f"remove {where}, or give another path" if rows else "give another path"
            raise _no_history(f"{file.source}, {where}", error, do) from error
    return rows


def _no_history(where: str, error: OptionError, do: str) -> OptionError:
    why = f"{error.what}: {error.do}".removesuffix(": ")
    return OptionError("the file does not contain a training history", where=where, why=why, do=do)


def _is_cut_off(line: str) -> bool:
    """Whether a line is the beginning of a row; zeros stand for what never reached the disk."""
    line = line.rstrip("\0")
    first = f'{{"{fields(Epoch)[0].name}": '
    return not line.endswith("}}") and first.startswith(line[: len(first)])


def _epoch(entry: Entry) -> Epoch:
    """A row; a loss that was lost may be NaN."""
    row = entry.record(*(f.name for f in fields(Epoch)))
    counts = {
        name: row[name].integer(0)
        for name in ("epoch", "parameters", "macs", "layers", "units", "steps")
    }
    loss, accuracy, seconds = (
        None if row[name].value is None else row[name].number()
        for name in ("loss", "accuracy", "seconds_per_step")
    )
    return Epoch(
        **counts,
        loss=loss,
        accuracy=accuracy,
        seconds_per_step=seconds,
        extra={name: e.number() for name, e in row["extra"].mapping().items()},
    )


def _tensorboard_writer(directory: Path) -> Any:
    try:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise OptionError(
            "TensorBoard is not installed",
            where="History(tensorboard=...)",
            do="pip install tensorboard",
        ) from error
    return writer(directory)
