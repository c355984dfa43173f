"""Builds a program from command-line arguments, and shows progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import nn

from fxprune.capture import capture
from fxprune.capture.inputs import default_inputs, parse_dynamic, parse_inputs
from fxprune.capture.named import Named, find_model
from fxprune.cli.weights import DEFAULT, put_weights
from fxprune.errors import CaptureError, OptionError
from fxprune.files.document import Document
from fxprune.graph.program import Program
from fxprune.io import load, load_model
from fxprune.io.directory import MODEL, kind_of
from fxprune.io.model import load_examples, saved_build
from fxprune.partial import Partial, capture_partial
from fxprune.shards import open_shards, without_weights

Examples = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]
_stderr = Console(stderr=True, highlight=False)


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Shows on a terminal what is being done; prints nothing elsewhere."""
    with _stderr.status(text):
        yield


@dataclass(frozen=True)
class Source:
    """What the options that all commands share say of MODEL.

    Attributes:
        model: names it.
        inputs: shapes of the example inputs.
        dynamic: which axes of the inputs may be free; see `parse_dynamic`.
        weights: a file, or DEFAULT.
        args: arguments of the model's constructor, as JSON.
        partial: whether to capture it in parts.
        trust: whether the class that a saved directory names may be imported and built.
        seed: for random weights and inputs.
    """

    model: str
    inputs: Sequence[str] = ()
    dynamic: Sequence[str] = ()
    weights: str = ""
    args: str = ""
    partial: bool = False
    trust: bool = False
    seed: int = 0


class Opened(NamedTuple):
    """A network and its example inputs.

    Attributes:
        network: with its weights.
        examples: positional and keyword inputs.
        build: how its class is built, as `fp.save` takes it; empty where nothing says so.
    """

    network: nn.Module
    examples: Examples
    build: dict[str, Any]


def open_program(source: Source, *, matters: bool = False) -> Program:
    """Returns the program of MODEL, captured whole or in parts; see `open_source`."""
    found = open_source(source, matters=matters)
    return found.program if isinstance(found, Partial) else found


def open_source(source: Source, *, matters: bool = False) -> Program | Partial:
    """Captures MODEL, whole or in parts, with the given inputs; or loads it from a directory.

    Args:
        source: what to open.
        matters: whether what comes out depends on the weights: random ones are then a warning.

    Raises:
        OptionError, CaptureError, LoadError: the model does not exist or cannot be captured.
    """
    if source.dynamic and source.partial:
        raise OptionError(
            "parts of a model are captured with a free batch alone",
            where="--dynamic",
            do="leave out --dynamic, or --partial",
        )
    if _is_directory(source.model) and kind_of(Path(source.model)) != MODEL:
        return _saved(source)
    opened = open_network(source, matters=matters)
    with progress(f"capturing {source.model}"):
        if source.partial:
            return _in_parts(opened.network, opened.examples)
        return _whole(opened.network, opened.examples, parse_dynamic(source.dynamic))


def open_fitting(source: Source, option: str) -> tuple[Program, Opened]:
    """Captures MODEL, and returns it too, for a plan that its class must express.

    Raises:
        OptionError, CaptureError: as `open_source`; or there is no class that a plan could be written back to.
    """
    graph = _is_directory(source.model) and kind_of(Path(source.model)) != MODEL
    if source.partial or graph:
        raise OptionError(
            "there is no class of a whole model to fit",
            where=option,
            why="parts are pruned"
            if source.partial
            else "a saved program is a graph without its class",
            do="leave out --partial" if source.partial else "name the original model",
        )
    opened = open_network(source, matters=True)
    with progress(f"capturing {source.model}"):
        return _whole(opened.network, opened.examples, parse_dynamic(source.dynamic)), opened


def open_runnable(source: Source) -> tuple[Program | nn.Module, dict[str, Any]]:
    """MODEL as a network to run, and what `fp.save` takes to write it: a saved program, or a model.

    Raises:
        OptionError, LoadError: it does not exist.
    """
    torch.manual_seed(source.seed)
    look_here()
    if not _is_directory(source.model):
        return _built(source, matters=True)
    if kind_of(Path(source.model)) != MODEL:
        return _saved(source), {}
    return _saved_network(source)


def open_network(source: Source, *, matters: bool = False) -> Opened:
    """Builds MODEL and its example inputs; see `open_source`.

    Raises:
        OptionError, LoadError: the model or its weights do not exist.
    """
    torch.manual_seed(source.seed)
    look_here()
    if _is_directory(source.model):
        network, build = _saved_network(source)
        examples = parse_inputs(source.inputs) if source.inputs else load_examples(source.model)
    else:
        network, build = _built(source, matters=matters)
        examples = (
            parse_inputs(source.inputs)
            if source.inputs
            else (default_inputs(source.model, network), {})
        )
    return Opened(network, examples, build)


def open_on_meta(source: Source, shards: Path | None = None) -> tuple[nn.Module, Program]:
    """Builds MODEL without weights, and captures it; its weights may stay in a checkpoint.

    Raises:
        OptionError, CaptureError: it does not exist, or cannot be captured.
    """
    look_here()
    network, kept = without_weights(find_model(source.model, parse_arguments(source.args)).build)
    given = parse_inputs(source.inputs) if source.inputs else None
    examples = given or (default_inputs(source.model, network), {})
    with progress(f"capturing {source.model}"):
        program = _whole(network, examples, parse_dynamic(source.dynamic))
    return network, program if shards is None else open_shards(program, shards, tensors=kept)


def _built(source: Source, *, matters: bool) -> tuple[nn.Module, dict[str, Any]]:
    """A model of its class, with weights, and how it is built."""
    found = find_model(source.model, parse_arguments(source.args))
    with progress(f"building {source.model}"):
        network = _with_weights(found, source.weights)
    if matters and not source.weights and found.kind in ("torchvision", "timm", "class"):
        print(
            f"warning: {source.model} has random weights, so that what is removed means nothing for a trained model\n"
            "  do    give a file of weights: --weights FILE"
            + (", or --weights DEFAULT" if found.pretrained else ""),
            file=sys.stderr,
        )
    build = {"build": found.path, "args": found.kwargs or list(found.args)} if found.path else {}
    return network, build


def _with_weights(found: Named, weights: str) -> nn.Module:
    if weights != DEFAULT:
        network = found.build()
        if weights:
            put_weights(network, weights)
        return network
    if not found.pretrained:
        raise OptionError(
            f"nothing has weights for {found.spec}",
            where="--weights",
            why=f"{DEFAULT} stands for those that torchvision or timm have",
            do="name a file: --weights FILE",
        )
    return found.build(pretrained=True)


def parse_arguments(text: str) -> Any:
    """The arguments of a constructor: a list of positional ones, or an object of keywords.

    Raises:
        OptionError: the text is neither.
    """
    if not text:
        return None
    found = Document("--args", OptionError).parse(text).value
    if isinstance(found, list) or (
        isinstance(found, dict) and all(k.isidentifier() for k in found)
    ):
        return found
    raise OptionError(
        "the arguments are neither keywords nor a list",
        where="--args",
        do="write an object, '{\"width\": 8}', or a list, '[8]'",
    )


def _saved_network(source: Source) -> tuple[nn.Module, dict[str, Any]]:
    """A saved model of its class, and how that is built."""
    for option, given in (("--weights", source.weights), ("--args", source.args)):
        if given:
            raise OptionError(
                "a saved model has its own weights and arguments",
                where=option,
                do=f"leave out {option}, or name the original model",
            )
    with progress(f"loading {source.model}"):
        network = load_model(source.model, trust=source.trust)
    return network, {"build": saved_build(source.model, trust=source.trust)}


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


def _saved(source: Source) -> Program:
    for option, given, why in (
        ("--dynamic", source.dynamic, "the free axes of a saved program are known"),
        ("--partial", source.partial, "a saved program cannot be captured in parts"),
        ("--input", source.inputs, "a saved program has its own example inputs"),
        ("--weights", source.weights, "a saved program has its own weights"),
        ("--args", source.args, "a saved program is a graph, and built from nothing"),
    ):
        if given:
            raise OptionError(
                why, where=option, do=f"leave out {option}, or name the original model"
            )
    with progress(f"loading {source.model}"):
        return load(source.model)


def parse_keep(texts: Sequence[str]) -> tuple[str, float | dict[str, float]]:
    """Returns the metric and the share of `macs=0.5`, or a share of units for each glob of `layer3.*=0.8`.

    A share without a metric is a share of MACs.

    Raises:
        OptionError: a text does not have this form, or a share of a metric is not the only one.
    """
    shares = dict(_share_of(text) for text in texts)
    if not any("*" in name or "." in name or ":" in name for name in shares):
        if len(texts) == 1:
            return next(iter(shares.items()))
        raise OptionError(
            f"{len(texts)} shares of a metric",
            where="--keep",
            do="give one, or shares of units for globs of modules: --keep 'layer3.*=0.8' --keep '*=0.5'",
        )
    return "units", dict(shares)


def _share_of(text: str) -> tuple[str, float]:
    name, equals, share = text.rpartition("=")
    try:
        return (name if equals else "macs"), float(share)
    except ValueError as error:
        raise OptionError(
            f"{text!r} is not a share of a metric",
            where="--keep",
            do="write --keep macs=0.5, --keep params=0.3, --keep units=0.7 or --keep latency=0.5; "
            "or a share of the units of some modules: --keep 'layer3.*=0.8'",
        ) from error


def parse_fields(texts: Sequence[str], option: str = "--to") -> dict[str, int]:
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
                where=option,
                do=f"write {option} hidden_size=1536, and repeat it for further fields",
            )
        found[name] = int(number)
    return found


def show(text: object, data: Any, *, as_json: bool) -> None:
    """Prints a result as text for people, or as one JSON document."""
    print(json.dumps(data, indent=1) if as_json else text)


def check_out(out: Path | None, *, force: bool) -> None:
    """Refuses a directory that has files already, before anything is computed.

    Raises:
        OptionError: it does, and nothing says that they may be overwritten.
    """
    if out is None or force:
        return
    try:
        there = out.is_dir() and any(out.iterdir())
    except OSError as error:
        raise OptionError(
            f"cannot write to {str(out)[-120:]}", where="--out", why=error.strerror or str(error)
        ) from error
    if there:
        raise OptionError(
            f"{out} has files already",
            where="--out",
            do="give another directory, or --force to replace what fxprune wrote there; files of others stay",
        )


def check_file(target: Path, ending: str, *, force: bool) -> None:
    """Refuses a file that is there already or cannot be written, before anything is computed.

    Raises:
        OptionError: it is, and nothing says that it may be replaced; or its name does not end so.
    """
    try:
        there, folder = target.exists() or target.is_symlink(), target.parent.is_dir()
        blocked = target.is_dir()
    except (OSError, ValueError) as error:
        text = f"cannot write {str(target)[-120:]}"
        raise OptionError(text, where="--out", why=str(error)[-240:]) from error
    if not folder or blocked or target.suffix != ending:
        why = f"its name does not end in {ending}" if folder else "its folder does not exist"
        raise OptionError(
            f"cannot write {str(target)[-120:]}",
            where="--out",
            why="it is a folder" if blocked else why,
            do=f"name a file that ends in {ending}, in a folder that exists",
        )
    if there and not force:
        raise OptionError(
            f"{target} exists", where="--out", do="give another name, or --force to replace it"
        )
