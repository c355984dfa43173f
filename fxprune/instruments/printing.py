"""Prints graphs before and after passes, either whole or as changes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.text import Text
from torch import fx

from fxprune.graph.leaf import leaf_of
from fxprune.graph.program import Program, module_path
from fxprune.pipeline.context import Context
from fxprune.pipeline.instrument import Instrument
from fxprune.pipeline.kinds import Pass
from fxprune.pipeline.pipeline import Pipeline

_STYLES = {"+": "green", "-": "red", "~": "yellow", "@": "cyan"}
Line = tuple[str, str]


class PrintGraph(Instrument):
    """Prints the graph before and after passes, in colour on a terminal.

    Args:
        before: print the whole graph before the passes whose names match this glob.
        after: print the whole graph after the passes whose names match this glob.
        changed: print after each pass what it changed, by module path, or that it changed nothing.
        stream: where to print; standard error if None.
    """

    def __init__(
        self,
        before: str = "",
        after: str = "",
        *,
        changed: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._before, self._after, self._changed, self._stream = before, after, changed, stream

    def before_pass(self, one: Pass, program: Program, ctx: Context) -> None:
        if fnmatchcase(one.name, self._before):
            self._print(f"graph before {Pipeline([one])}", listing(program))

    def after_pass(self, one: Pass, before: Program, after: Program, ctx: Context) -> None:
        if fnmatchcase(one.name, self._after):
            self._print(f"graph after {Pipeline([one])}", listing(after))
        if self._changed:
            lines = list(changes(before, after))
            state = "changes made by" if lines else "no changes made by"
            self._print(f"{state} {Pipeline([one])}", lines)

    def _print(self, title: str, lines: Sequence[str]) -> None:
        console = Console(file=self._stream or sys.stderr, highlight=False, soft_wrap=True)
        console.print(Text(f"=== {title}", style="bold"))
        for line in lines:
            console.print(Text(line, style=_STYLES.get(line[:1], "")))


def listing(program: Program) -> list[str]:
    """Returns one line for each node: module path, name, operation, arguments and sizes."""
    return [f"{path or '(itself)'}: {text}" for path, text in _lines(program)]


def changes(before: Program, after: Program) -> Iterator[str]:
    """Yields the differences between two programs: nodes by module path, then tensors whose values changed.

    A line starts with `@` (a module path), `-` (removed), `+` (added) or `~` (a tensor with other values).
    """
    if after is before:
        return
    old, new = _lines(before), _lines(after)
    for tag, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            yield from _hunk(old[i:j], new[k:m])
    yield from _replaced(before, after)


def _hunk(old: Sequence[Line], new: Sequence[Line]) -> Iterator[str]:
    """Yields removed and added nodes next to each other for each module path."""
    for path in dict.fromkeys(path for path, _ in (*old, *new)):
        yield f"@ {path or '(itself)'}"
        for sign, lines in (("-", old), ("+", new)):
            yield from (f"{sign} {text}" for at, text in lines if at == path)


def _replaced(before: Program, after: Program) -> Iterator[str]:
    known = before.tensors()
    for name, tensor in after.tensors().items():
        old = known.get(name)
        if old is not None and old is not tensor and old.shape == tensor.shape:
            yield f"~ {name}: values changed"


def _lines(program: Program) -> list[Line]:
    return [(_path(n), _text(program, n)) for n in program.nodes]


def _path(node: fx.Node) -> str:
    if node.op in ("get_attr", "call_module"):
        return str(node.target).rpartition(".")[0]
    return module_path(node)


def _text(program: Program, node: fx.Node) -> str:
    args = [*map(str, node.args), *(f"{k}={v}" for k, v in node.kwargs.items())]
    value = "" if node.op == "output" else _value(node.meta.get("val"))
    return f"{node.name} = {_target(program, node)}({', '.join(args)}){value and f' : {value}'}"


def _target(program: Program, node: fx.Node) -> str:
    if node.op == "call_function":
        return str(node.target).removesuffix(".default")
    if (leaf := leaf_of(program.module, node)) is not None:
        return f"{type(leaf).__name__} {node.target}"
    return f"{node.op} {node.target}"


def _value(value: Any) -> str:
    """Returns the type and sizes of a tensor; those of several tensors in brackets."""
    if isinstance(value, torch.Tensor):
        sizes = "x".join(str(size) for size in value.shape) or "scalar"
        return f"{str(value.dtype).removeprefix('torch.')} {sizes}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return "" if value is None else type(value).__name__
