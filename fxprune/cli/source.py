"""From what is typed to a Program, with progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fxprune.capture import capture
from fxprune.capture.inputs import default_inputs, load_model, parse_input
from fxprune.errors import CaptureError, OptionError
from fxprune.graph.program import Program
from fxprune.io import load
from fxprune.partial import Partial, capture_partial

_stderr = Console(stderr=True, highlight=False)


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Shows on a terminal what is being done; says nothing elsewhere."""
    with _stderr.status(text):
        yield


def open_program(model: str, inputs: Sequence[str], seed: int, *, partial: bool) -> Program:
    """The program of MODEL: whole, or that of its parts; see `open_source`."""
    source = open_source(model, inputs, seed, partial=partial)
    return source.program if isinstance(source, Partial) else source


def open_source(
    model: str, inputs: Sequence[str], seed: int, *, partial: bool
) -> Program | Partial:
    """MODEL captured whole, or in its parts, with the given inputs; or loaded from a directory.

    Raises:
        OptionError, CaptureError, LoadError: there is no such model, or it cannot be captured.
    """
    if _is_directory(model):
        return _saved(model, inputs, partial=partial)
    torch.manual_seed(seed)
    look_here()
    with progress(f"building {model}"):
        network = load_model(model)
    examples = tuple(map(parse_input, inputs)) or default_inputs(model, network)
    with progress(f"capturing {model}"):
        return _in_parts(network, examples) if partial else _whole(network, examples)


def look_here() -> None:
    """Finds modules in the current folder, as `python -m` does: package.module:callable."""
    sys.path.insert(0, str(Path.cwd()))


def _is_directory(model: str) -> bool:
    try:
        return Path(model).is_dir()
    except OSError as error:
        raise OptionError(
            "MODEL names nothing", where=model[:80], why=error.strerror or str(error)
        ) from error


def _whole(network: nn.Module, examples: tuple[torch.Tensor, ...]) -> Program:
    try:
        return capture(network, examples)
    except CaptureError as error:
        do = "if the model runs and only its export fails, add --partial: its parts are captured"
        raise CaptureError(
            error.what,
            where=error.where,
            why=error.why,
            do="; ".join(filter(None, (error.do, do))),
        ) from error


def _in_parts(network: nn.Module, examples: tuple[torch.Tensor, ...]) -> Partial:
    """The partial capture; says on stderr what it holds, since tables show nothing else."""
    found = capture_partial(network, examples)
    parts = ", ".join(path or "the whole model" for path in found.parts)
    note = f"captured in parts: {parts}"
    if found.opaque:
        outside = ", ".join(remark.where for remark in found.opaque)
        note += f"\noutside, neither counted nor changed: what is left of {outside}"
    print(note, file=sys.stderr)
    return found


def _saved(directory: str, inputs: Sequence[str], *, partial: bool) -> Program:
    if partial:
        raise OptionError(
            "a saved program is whole",
            where="--partial",
            do="leave --partial out, or name the model that was captured",
        )
    if inputs:
        raise OptionError(
            "a saved program has its own example inputs",
            where="--input",
            do="leave --input out, or capture the model again",
        )
    with progress(f"loading {directory}"):
        return load(directory)


def parse_keep(text: str) -> tuple[str, float]:
    """Metric and share of `macs=0.5`; a share alone is one of MACs.

    Raises:
        OptionError: not of this form.
    """
    metric, equals, share = text.rpartition("=")
    try:
        return (metric if equals else "macs"), float(share)
    except ValueError as error:
        raise OptionError(
            f"{text!r} is no share of a metric",
            where="--keep",
            do="write --keep macs=0.5, --keep params=0.3 or --keep units=0.7",
        ) from error


def show(text: object, data: Any, *, as_json: bool) -> None:
    """Prints a result: text for a person, or one JSON document."""
    print(json.dumps(data, indent=1) if as_json else text)
