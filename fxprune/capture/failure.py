"""Turns an exception of `torch.export` into a `CaptureError` that names the line of the model's own code."""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.process.state import callers_device
from fxprune.stand_in import stand_in
from fxprune.torch_private import WithoutData

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"  # torchvision's files begin with "torch" too
_OWN = f"{Path(__file__).parent.parent}{os.sep}"
_PYTHON = f"{Path(os.__file__).parent}{os.sep}"
Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Example inputs: positional and by keyword."""


class _Advice(NamedTuple):
    """What is the matter, and what to do about it."""

    what: str
    do: str


def first_line(error: BaseException) -> str:
    """Returns the first informative line of the error's message, shortened to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[0], 240, placeholder=" ...") if lines else type(error).__name__


def own_line(error: BaseException) -> str:
    """Returns `file:line in function` of the last frame outside torch and Python, or ""."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not _is_foreign(f.filename)]
    return f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""


def calling_line() -> str:
    """Returns `file:line in function` of the innermost call now running outside torch and Python, or ""."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_foreign(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return ""
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _is_foreign(filename: str) -> bool:
    """Returns whether a file belongs to torch, to Python or to fxprune itself."""
    of_python = filename.startswith(_PYTHON) and "site-packages" not in filename
    return of_python or filename.startswith((_TORCH, _OWN)) or "<" in filename


def to_capture_error(
    model: nn.Module, error: Exception, inputs: Inputs, dynamic: str = ""
) -> CaptureError:
    """Returns the error to raise when a model does not export.

    Args:
        model: the model.
        error: the exception of the export with a fixed batch size.
        inputs: the example inputs.
        dynamic: the message of the export with a free batch size that was tried first, or "".
    """
    what, do = _advice(model, error, inputs)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        do = f"capture the network in the wrapper, model.module; {do}"
    line = own_line(error)
    where = type(model).__name__ + (f" at {line}" if line else "")
    why = f"{type(error).__name__}: {first_line(error)}"
    if dynamic and dynamic != why:
        why += f" (with a free batch size: {dynamic})"
    return CaptureError(what, where=where, why=why, do=do)


def at_fixed_batch(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception
) -> Exception | None:
    """Returns the exception that an export with a fixed batch size is certain to raise, or None.

    Args:
        model: the model.
        args: the example positional inputs.
        kwargs: the example keyword inputs.
        error: the exception of the export with a free batch size.

    The model is run without data at the fixed batch size, which costs a fraction of an export. If it
    fails at the very same line, so will the export. A branch on the values of a tensor is certain to
    fail only if it depends on nothing but values.
    """
    branch = is_data_dependent(error)
    said = first_line(error)
    if branch and (not re.search(r"\bu\d+\b", said) or re.search(r"\bs\d+\b", said)):
        return None
    inputs = pytree.tree_flatten((args, dict(kwargs)))
    try:
        with stand_in(model) as twin, callers_device():
            WithoutData(twin, *inputs)()
    except Exception as again:
        line = own_line(error)
        if own_line(again) != line or is_data_dependent(again) != branch:
            return None
        if branch:
            return error if line else None  # the export's names the branch
        return again if type(again) is type(error) else None  # the run's names the user's sizes
    return None


def is_data_dependent(error: Exception) -> bool:
    """Returns whether code branches on, or asks for, the value of a tensor."""
    text = f"{type(error).__name__} {error}"
    return any(t in text for t in ("data-dependent", "DataDependent", "Eq(u0", "unbacked"))


def _advice(model: nn.Module, error: Exception, inputs: Inputs) -> _Advice:
    said = f"{type(error).__name__} {error}"
    if is_data_dependent(error):
        return _of_fake_quantise(model) or _of_cumulative_average(model) or _DATA_DEPENDENT
    return (
        _of_scripted(model)
        or _of_signature(model, inputs)
        or _of_constant(inputs)
        or _of_layout(model)
        or next((advice for pattern, advice in _SAID if re.search(pattern, said)), None)
        or (_PACKED if _runs_packed(error) else _UNKNOWN)
    )


def _of_scripted(model: nn.Module) -> _Advice | None:
    """Returns what to do about a scripted module, whose operators torch.export does not see."""
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return _Advice(
                f"the model has a scripted module, {path}"
                if path
                else "the model is a scripted module",
                "capture the model as it was before torch.jit.script or torch.jit.trace",
            )
    return None


def _of_fake_quantise(model: nn.Module) -> _Advice | None:
    """Returns what to do about fake quantisation in Python, which branches on the values of its switches."""
    for path, module in model.named_modules():
        known = {c.__name__ for c in type(module).__mro__}
        if "FakeQuantizeBase" in known and "FusedMovingAvgObsFakeQuantize" not in known:
            return _Advice(
                f"fake quantisation branches on the values of its switches: {path} ({type(module).__name__})",
                "prepare the model with FusedMovingAvgObsFakeQuantize, which is a single operator, as "
                "get_default_qat_qconfig does",
            )
    return None


def _of_cumulative_average(model: nn.Module) -> _Advice | None:
    """Returns what to do about a batch norm that averages over all batches: it divides by a counter's value."""
    for path, module in model.named_modules():
        if module.training and getattr(module, "momentum", 0) is None:
            return _Advice(
                f"a batch norm with momentum=None divides by its counter: {path} ({type(module).__name__})",
                "give it a momentum, such as 0.1, or capture the model in eval mode",
            )
    return None


def _of_signature(model: nn.Module, inputs: Inputs) -> _Advice | None:
    """Returns what to do about inputs that `forward` does not take; a TypeError has many other causes."""
    args, kwargs = inputs
    try:
        known = inspect.signature(model.forward)
    except ValueError:  # it is not a Python function
        return None
    try:
        known.bind(*args, **kwargs)
    except TypeError:
        return _Advice(
            "the model does not accept these inputs",
            f"compare args and kwargs with the signature of the model's forward: {known}",
        )
    return None


def _of_layout(model: nn.Module) -> _Advice | None:
    """Returns what to do about sparse parameters and buffers."""
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if not is_lazy(x) and x.layout != torch.strided:
            return _Advice(
                f"{name} is sparse ({x.layout})",
                "units are removed from dense tensors: replace it by its to_dense()",
            )
    return None


def _of_constant(inputs: Inputs) -> _Advice | None:
    """Returns what to do about an input that is neither a tensor nor a number, such as a dtype."""
    args, kwargs = inputs
    for path, x in pytree.tree_flatten_with_path({"args": args, "kwargs": dict(kwargs)})[0]:
        if x is not None and not isinstance(x, torch.Tensor | int | float | str | bool):
            name = pytree.keystr(path).replace("['", "", 1).replace("']", "", 1)
            return _Advice(
                f"the input {name} is a {type(x).__name__}",
                "torch.export takes tensors, numbers, texts and containers of them: let a module around the model hold "
                "this value, or register its class with torch.utils._pytree.register_constant",
            )
    return None


def _runs_packed(error: Exception) -> bool:
    """Returns whether the call that failed is about a packed sequence."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(
        isinstance(x, PackedSequence) for frame, _ in frames for x in frame.f_locals.values()
    )


_DATA_DEPENDENT = _Advice(
    "the model's control flow depends on the values of a tensor",
    "move the branch out of forward, use torch.where, or capture in parts: fp.capture_partial(model, args)",
)
_PACKED = _Advice(
    "the model runs a recurrent layer on a packed sequence",
    "its sizes are known only at run time: run the layer on the padded tensor, or capture the modules around it: "
    "fp.capture_partial(model, args)",
)
_UNKNOWN = _Advice(
    "the model cannot be run on the example inputs under torch.export",
    "call model(*args, **kwargs) first: if an input has a wrong shape, that call fails too; if it runs, capture in "
    "parts: fp.capture_partial(model, args)",
)
# Which words of an exception call for which advice.
_SAID = (
    (
        r"uninitialized parameter",
        _Advice(
            "the model has lazy modules, whose parameters do not exist yet",
            "call the model once on the example inputs before it is captured",
        ),
    ),
    (
        r"PackedParams|__obj_flatten__",
        _Advice(
            "the model has quantised layers, whose weights are packed into objects",
            "prune the model first, and quantise the result",
        ),
    ),
    (
        r"[Ii]nference tensor",
        _Advice(
            "the model has parameters or buffers that were created in inference mode",
            "build the model and load its weights outside torch.inference_mode()",
        ),
    ),
    (
        r"(?s)Cache.*pytree|pytree.*Cache",
        _Advice(
            "the model returns a cache whose class torch.export does not know",
            "pass use_cache=False among the example inputs, or register the class as a pytree node",
        ),
    ),
    (
        r"register_dataclass|register_pytree_node|register a pytree|Unsupported output",
        _Advice(
            "an input or output of the model has a type that torch.export does not know",
            "register the class with torch.export.register_dataclass, or one that is no dataclass with "
            "torch.utils._pytree.register_pytree_node",
        ),
    ),
)
