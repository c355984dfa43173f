"""Builds a program from command-line arguments, and shows progress on standard error."""

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
from fxprune.capture.inputs import default_inputs, load_model, parse_dynamic, parse_inputs
from fxprune.errors import CaptureError, OptionError
from fxprune.graph.program import Program
from fxprune.io import load
from fxprune.partial import Partial, capture_partial

Examples = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]
_stderr = Console(stderr=True, highlight=False)


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Shows on a terminal what is being done; prints nothing elsewhere."""
    with _stderr.status(text):
        yield


def open_program(
    model: str, inputs: Sequence[str], seed: int, *, partial: bool, dynamic: Sequence[str] = ()
) -> Program:
    """Returns the program of MODEL, captured whole or in parts; see `open_source`."""
    source = open_source(model, inputs, seed, partial=partial, dynamic=dynamic)
    return source.program if isinstance(source, Partial) else source


def open_source(
    model: str, inputs: Sequence[str], seed: int, *, partial: bool, dynamic: Sequence[str] = ()
) -> Program | Partial:
    """Captures MODEL, whole or in parts, with the given inputs; or loads it from a directory.

    Args:
        model: names it.
        inputs: shapes of the example inputs.
        seed: for random weights and inputs.
        partial: whether to capture it in parts.
        dynamic: which axes of the inputs may be free; see `parse_dynamic`.

    Raises:
        OptionError, CaptureError, LoadError: the model does not exist or cannot be captured.
    """
    if dynamic and partial:
        raise OptionError(
            "parts of a model are captured with a free batch alone",
            where="--dynamic",
            do="leave out --dynamic, or --partial",
        )
    if _is_directory(model):
        return _saved(model, inputs, partial=partial, dynamic=dynamic)
    network, examples = _built(model, inputs, seed)
    with progress(f"capturing {model}"):
        if partial:
            return _in_parts(network, examples)
        return _whole(network, examples, parse_dynamic(dynamic))


def open_fitting(
    model: str, inputs: Sequence[str], seed: int, *, partial: bool, dynamic: Sequence[str] = ()
) -> tuple[Program, nn.Module]:
    """Captures MODEL, and returns it too, for a plan that its class must express.

    Raises:
        OptionError, CaptureError: as `open_source`; or there is no class that a plan could be written back to.
    """
    if partial or _is_directory(model):
        raise OptionError(
            "there is no class of a whole model to fit",
            where="--fits-class or --to",
            why="parts are pruned" if partial else "a saved program is a graph without its class",
            do="leave out --partial" if partial else "name the original model",
        )
    network, examples = _built(model, inputs, seed)
    with progress(f"capturing {model}"):
        return _whole(network, examples, parse_dynamic(dynamic)), network


def _built(model: str, inputs: Sequence[str], seed: int) -> tuple[nn.Module, Examples]:
    torch.manual_seed(seed)
    look_here()
    with progress(f"building {model}"):
        network = load_model(model)
    return network, parse_inputs(inputs) if inputs else (default_inputs(model, network), {})


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


def _whole(network: nn.Module, examples: Examples, sizes: dict[str, Any]) -> Program:
    try:
        return capture(network, *examples, **sizes)
    except CaptureError as error:
        do = "if the model itself runs and only its export fails, add --partial to capture it in parts"
        raise CaptureError(
            error.what,
            where=error.where,
            why=error.why,
            do="; ".join(filter(None, (error.do, do))),
        ) from error


def _in_parts(network: nn.Module, examples: Examples) -> Partial:
    """Captures the model in parts, and prints to standard error what was captured, which tables do not show."""
    found = capture_partial(network, *examples)
    parts = ", ".join(path or "the whole model" for path in found.parts)
    note = f"captured in parts: {parts}"
    if found.opaque:
        outside = ", ".join(remark.where for remark in found.opaque)
        note += f"\nnot captured, and therefore neither counted nor changed: the rest of {outside}"
    print(note, file=sys.stderr)
    return found


def _saved(
    directory: str, inputs: Sequence[str], *, partial: bool, dynamic: Sequence[str]
) -> Program:
    if dynamic:
        raise OptionError(
            "the free axes of a saved program are known",
            where="--dynamic",
            do="leave out --dynamic, or name the original model",
        )
    if partial:
        raise OptionError(
            "a saved program cannot be captured in parts",
            where="--partial",
            do="leave out --partial, or name the original model",
        )
    if inputs:
        raise OptionError(
            "a saved program has its own example inputs",
            where="--input",
            do="leave out --input, or name the original model",
        )
    with progress(f"loading {directory}"):
        return load(directory)


def parse_keep(text: str) -> tuple[str, float]:
    """Returns the metric and the share of `macs=0.5`; a share without a metric is a share of MACs.

    Raises:
        OptionError: the text does not have this form.
    """
    metric, equals, share = text.rpartition("=")
    try:
        return (metric if equals else "macs"), float(share)
    except ValueError as error:
        raise OptionError(
            f"{text!r} is not a share of a metric",
            where="--keep",
            do="write --keep macs=0.5, --keep params=0.3 or --keep units=0.7",
        ) from error


def parse_fields(texts: Sequence[str]) -> dict[str, int]:
    """Returns the fields of a config and their numbers, of texts like `hidden_size=1536`.

    Raises:
        OptionError: a text does not have this form.
    """
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not name or not number.isdecimal():
            raise OptionError(
                f"{text!r} is not a field of a config with a whole number",
                where="--to",
                do="write --to hidden_size=1536, and repeat it for further fields",
            )
        found[name] = int(number)
    return found


def show(text: object, data: Any, *, as_json: bool) -> None:
    """Prints a result as text for people, or as one JSON document."""
    print(json.dumps(data, indent=1) if as_json else text)
