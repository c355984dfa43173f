"""A program in the format of another tool: written, run and compared with the program."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.process.state import undisturbed
from fxprune.torch_private import aoti_load, aoti_package
from fxprune.verify import TOLERANCE, Check, batches_of, compare_runs
from fxprune.verify.check import Run, least_exact

Format = Literal["onnx", "pt2", "aoti"]
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_LARGE = 1_900_000_000  # bytes: an ONNX file of 2 GB and more keeps its weights in another


def check_tools(kind: Format) -> None:
    """Makes sure that what a format needs is installed.

    Raises:
        OptionError: it is not.
    """
    missing = []
    for name in _NEEDED if kind == "onnx" else ():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise OptionError(
            f"{kind} needs {' and '.join(missing)}",
            where="--format",
            why="they are no dependencies of fxprune",
            do=f"pip install {' '.join(missing)}",
        )


@torch.no_grad()
def write_artefact(program: Program, kind: Format, path: Path) -> None:
    """Writes a program, with its free axes, in eval mode or in the mode that it has.

    Raises:
        OptionError: the tool refuses the program.
    """
    try:
        with undisturbed(), warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")  # of the tools, about themselves
            exported = _exported(program)
            if kind == "onnx":
                size = sum(t.nbytes for t in program.tensors().values())
                torch.onnx.export(
                    exported, f=path, dynamo=True, external_data=size > _LARGE, verbose=False
                )
            elif kind == "pt2":
                torch.export.save(exported, path)
            else:
                aoti_package(exported, path)
    except Exception as error:  # another tool: anything may come
        raise OptionError(
            f"{program.name} cannot be exported to {kind}",
            where="--format",
            why=f"{type(error).__name__}: {error}".split("\n")[0][:400],
            do="try another format; docs/chaining.md says what each takes",
        ) from error


def _exported(program: Program) -> ExportedProgram:
    """The program as torch.export has it, each free axis free."""
    free = program.free_axes
    args, kwargs = program.args, dict(program.kwargs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    names = [n.name for n in program.graph.find_nodes(op="placeholder")]
    rows = [_dynamic(x, free.get(n, {})) for x, n in zip(leaves, names, strict=True)]
    shapes = None
    if any(rows):
        of_args, of_kwargs = pytree.tree_unflatten(rows, spec)
        shapes = (*of_args, *of_kwargs.values())
    return torch.export.export(program.module, args, kwargs, dynamic_shapes=shapes, strict=False)


def _dynamic(value: Any, axes: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return None
    return {i: Dim.AUTO if i in axes else Dim.STATIC for i in range(value.dim())}


def check_artefact(program: Program, kind: Format, path: Path, seed: int) -> Check:
    """Runs what was written on random inputs like the example's, at a second size where one is free, and compares.

    Args:
        program: that was written.
        kind: its format.
        path: the file.
        seed: of the inputs.
    """
    dtype = least_exact(
        {t.dtype for t in program.tensors().values() if t.is_floating_point()} or {torch.float32}
    )
    with torch.no_grad():
        return compare_runs(
            _flat(program),
            _opened(kind, path),
            batches_of(program, seed),
            dtype=dtype,
            against="the program",
            tolerance=max(TOLERANCE[dtype], TOLERANCE[torch.float32] if kind != "pt2" else 0),
            seed=seed,
        )


def _flat(module: Callable[..., Any]) -> Run:
    def run(args: tuple[Any, ...], kwargs: Any) -> Sequence[Any]:
        return pytree.tree_leaves(module(*args, **kwargs))

    return run


def _opened(kind: Format, path: Path) -> Run:
    if kind == "pt2":
        return _flat(torch.export.load(path).module())
    return _flat(aoti_load(path)) if kind == "aoti" else _session(path)


def _session(path: Path) -> Run:
    session = import_module("onnxruntime").InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]

    def run(args: tuple[Any, ...], kwargs: Any) -> Sequence[Any]:
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        arrays = {n: x.detach().numpy() for n, x in zip(names, given, strict=True)}
        return [torch.from_numpy(x) for x in session.run(None, arrays)]

    return run
