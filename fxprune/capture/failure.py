"""Turns an exception of `torch.export` into a `CaptureError` that names the line of the model's own code."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.process_state import callers_device
from fxprune.stand_in import stand_in
from fxprune.torch_private import WithoutData

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"  # torchvision's files begin with "torch" too
_OWN = f"{Path(__file__).parent.parent}{os.sep}"


def first_line(error: BaseException) -> str:
    """Returns the first informative line of the error's message, shortened to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[0], 240, placeholder=" ...") if lines else type(error).__name__


def own_line(error: BaseException) -> str:
    """Returns `file:line in function` of the last frame outside torch, or ""."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((_TORCH, _OWN)) and "<" not in f.filename]
    return f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""


def to_capture_error(model: nn.Module, error: Exception, dynamic: str = "") -> CaptureError:
    """Returns the error to raise when a model does not export.

    Args:
        model: the model.
        error: the exception of the export with a fixed batch size.
        dynamic: the message of the export with a free batch size that was tried first, or "".
    """
    what, do = _advice(error)
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
    branch = _is_data_dependent(error)
    said = first_line(error)
    if branch and (not re.search(r"\bu\d+\b", said) or re.search(r"\bs\d+\b", said)):
        return None
    inputs = pytree.tree_flatten((args, dict(kwargs)))
    try:
        with stand_in(model) as twin, callers_device():
            WithoutData(twin, *inputs)()
    except Exception as again:
        line = own_line(error)
        if own_line(again) != line or _is_data_dependent(again) != branch:
            return None
        if branch:
            return error if line else None  # the export's names the branch
        return again if type(again) is type(error) else None  # the run's names the user's sizes
    return None


def _is_data_dependent(error: Exception) -> bool:
    text = f"{type(error).__name__} {error}"
    return any(t in text for t in ("data-dependent", "DataDependent", "Eq(u0", "unbacked"))


def _advice(error: Exception) -> tuple[str, str]:
    text = f"{type(error).__name__} {error}"
    if _is_data_dependent(error):
        return (
            "the model's control flow depends on the values of a tensor",
            "move the branch out of forward, use torch.where, or capture in parts: fp.capture_partial(model, args)",
        )
    if "Cache" in text and "pytree" in text:
        return (
            "the model returns a cache whose class torch.export does not know",
            "pass use_cache=False among the example inputs, or register the class as a pytree node",
        )
    if any(t in text for t in ("register_dataclass", "register_pytree_node", "Unsupported output")):
        return (
            "an input or output of the model has a type that torch.export does not know",
            "register the class with torch.export.register_dataclass",
        )
    if isinstance(error, TypeError):
        return (
            "the model does not accept these inputs",
            "compare args and kwargs with the signature of the model's forward",
        )
    return (
        "the model cannot be run on the example inputs under torch.export",
        "call model(*args, **kwargs) first: if an input has a wrong shape, that call fails too",
    )
