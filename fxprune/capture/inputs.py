"""Makes example inputs from their shapes, for the command line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import prod
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from fxprune.capture.named import unknown
from fxprune.errors import OptionError

_IMAGE = (2, 3, 224, 224)
_VIDEO = (2, 3, 16, 112, 112)
_INCEPTION = (2, 3, 299, 299)
_VIDEO_SIZES = {"mvit_v1_b": 224, "mvit_v2_s": 224, "s3d": 224, "swin3d_t": 224}


def parse_inputs(texts: Iterable[str]) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Makes the positional and the keyword inputs; `mask=2x16:bool` is an input by keyword.

    Raises:
        OptionError: see `parse_input`; or a keyword is no name or is given twice.
    """
    args: list[torch.Tensor] = []
    kwargs: dict[str, torch.Tensor] = {}
    for text in texts:
        name, equals, shape = text.rpartition("=")
        if not equals:
            args.append(parse_input(text))
        elif not name.isidentifier() or name in kwargs:
            raise OptionError(
                f"{name[:80]!r} is {'given twice' if name in kwargs else 'no name of an input'}",
                where="--input",
                do="write each input by keyword once, as NAME=SHAPE: mask=2x16:bool",
            )
        else:
            kwargs[name] = parse_input(shape)
    return tuple(args), kwargs


def parse_dynamic(texts: Iterable[str]) -> dict[str, Any]:
    """Returns the arguments of `capture` for what `--dynamic` says.

    Args:
        texts: `all`, `batch` or `none`; or for each input some axes of which have to be free, `x=0,2,3`.

    Raises:
        OptionError: the text says none of these.
    """
    words = list(texts)
    if words in ([], ["all"]):
        return {}
    if words == ["batch"]:
        return {"dynamic_shapes": "batch"}
    if words == ["none"]:
        return {"dynamic_batch": False}
    shapes: dict[str, dict[int, Any]] = {}
    for text in words:
        name, equals, axes = text.partition("=")
        parts = axes.split(",")
        if not equals or not all(p.isdecimal() for p in parts):
            raise OptionError(
                f"{text[:80]!r} names no axes",
                where="--dynamic",
                do="write all, batch or none; or for each input the axes that have to be free, as x=0,2,3",
            )
        shapes.setdefault(name, {}).update({int(p): Dim.DYNAMIC for p in parts})
    return {"dynamic_shapes": shapes}


def parse_input(text: str) -> torch.Tensor:
    """Makes a random tensor from a shape, `2x3x224x224`, and optionally a dtype, `2x16:int64`.

    Integer tensors contain only 0 and 1, which are valid indices into any table.

    Raises:
        OptionError: the text is not a shape, or torch has no such dtype.
    """
    shape_text, _, dtype_text = text.partition(":")
    parts = shape_text.split("x") if shape_text else []
    if not parts or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise OptionError(
            f"{text!r} is not a shape",
            where="--input",
            do="write sizes separated by x, and optionally a dtype: 2x3x224x224 or 2x16:int64",
        )
    dtype = _dtype(dtype_text or "float32")
    try:
        return _random([int(p) for p in parts], dtype)
    except (RuntimeError, OverflowError, ValueError, TypeError, MemoryError) as error:
        raise OptionError(
            f"there can be no input {text[:80]!r}",
            where="--input",
            why=str(error).splitlines()[0][:240] if str(error) else type(error).__name__,
            do="give a smaller shape, or another type",
        ) from error


def _random(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    size, memory = prod(shape) * dtype.itemsize, physical_memory()
    if size > memory:
        raise MemoryError(f"it would have {size:,} bytes, and this machine has {memory:,}")
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.float32 if dtype.itemsize == 1 else dtype  # float8 draws nothing
        return torch.randn(shape, dtype=wide).to(dtype)
    return torch.randint(0, 2, shape).to(dtype)


def physical_memory() -> int:
    """Bytes that the machine has; those that can be addressed, where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 47


def default_inputs(spec: str, model: nn.Module) -> tuple[torch.Tensor, ...]:
    """Returns example inputs for a model of a known family.

    Raises:
        OptionError: no example input is known for this model; pass a shape.
    """
    source, _, name = spec.partition(":")
    if source == "torchvision":
        return (torch.randn(_torchvision_shape(name)),)
    config = getattr(model, "default_cfg", None) or {}
    if source == "timm" and "input_size" in config:
        return (torch.randn(2, *config["input_size"]),)
    raise OptionError(
        f"no example input is known for {spec}",
        where="--input",
        do="give its shape, for example --input 2x3x224x224",
    )


def _torchvision_shape(name: str) -> tuple[int, ...]:
    if name == "inception_v3":
        return _INCEPTION
    if name in _VIDEO_SIZES or name.startswith("swin3d"):
        return (2, 3, 16, 224, 224)
    return _VIDEO if name in {"r3d_18", "mc3_18", "r2plus1d_18"} else _IMAGE


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if isinstance(found, torch.dtype):
        return found
    known = [k for k, v in vars(torch).items() if isinstance(v, torch.dtype)]
    raise unknown(f"torch has no dtype {name!r}", name, known, "--input")
