"""Tensors in safetensors files: the numbers there, types and strides that it does not know beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fxprune.errors import LoadError
from fxprune.files.document import Entry
from fxprune.io.plain import read_dtype

# Others are stored as bytes: not every version of safetensors knows them.
_KNOWN = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
}
_CLASSES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


class Stored:
    """Gathers tensors for one file; each is a copy in memory of its own."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}

    def add(self, name: str, tensor: torch.Tensor) -> dict[str, Any]:
        """Takes a tensor; returns what the file does not say of it.

        Raises:
            LoadError: it is more than numbers.
        """
        if type(tensor) not in _CLASSES or tensor.layout != torch.strided or tensor.is_quantized:
            raise LoadError(
                f"a {type(tensor).__name__} of layout {tensor.layout} cannot be saved",
                where=name,
                do="make it a plain tensor first",
            )
        if any("\ud800" <= c <= "\udfff" for c in name):  # safetensors ends the process on it
            raise LoadError(f"a tensor named {name!r} cannot be saved", do="give it another name")
        facts: dict[str, Any] = {}
        if tensor.stride() != _contiguous(tensor.shape) and _is_dense(
            tensor.shape, tensor.stride()
        ):
            facts["stride"] = list(tensor.stride())
        own = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        if own.dtype not in _KNOWN:
            facts |= {
                "dtype": str(own.dtype).removeprefix("torch."),
                "shape": list(own.shape),
            }
            own = own.reshape(-1).view(torch.uint8)
        shared = own.untyped_storage().nbytes() != own.nbytes
        self._tensors[name] = own.clone() if shared else own
        return facts

    def save(self, path: Path) -> None:
        """Writes the file."""
        save_file(self._tensors, path)


class Loaded:
    """The tensors of a file.

    Raises:
        LoadError: it is no such file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tensors: Mapping[str, torch.Tensor] = load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise LoadError(
                f"{path.name} is truncated or altered",
                where=str(path),
                why=f"{type(error).__name__}: {error}"[:240],
                do="save it again, or copy it again",
            ) from error
        self._left, self._path = set(self._tensors), path

    def take(self, name: str, facts: Entry) -> torch.Tensor:
        """The tensor that `Stored.add` took, on the CPU."""
        if name not in self._tensors:
            facts.fail(f"{self._path.name} has no {name[:80]!r}", "save it again")
        self._left.discard(name)
        as_bytes = ("dtype", "shape") if "dtype" in facts.mapping() else ()
        known = facts.record(*as_bytes, optional=("stride",))
        # In the file tensors lie at any address, and kernels round otherwise where memory is not aligned.
        tensor = self._tensors[name].clone()
        if as_bytes:
            dtype, shape = read_dtype(known["dtype"]), _lengths(known["shape"])
            if tensor.dtype != torch.uint8 or tensor.numel() != prod(shape) * dtype.itemsize:
                facts.fail(f"{name[:80]!r} has another number of bytes", "save it again")
            tensor = tensor.view(dtype).reshape(shape)
        return _strided(tensor, known["stride"]) if "stride" in known else tensor

    def finish(self) -> None:
        """Makes sure that every tensor was asked for.

        Raises:
            LoadError: the file has more.
        """
        if self._left:
            raise LoadError(
                f"{self._path.name} has tensors that nothing names",
                where=str(self._path),
                why=", ".join(sorted(self._left)[:4])[:240],
                do="save it again",
            )


def _lengths(entry: Entry) -> list[int]:
    return [e.integer(0) for e in entry.items()]


def _strided(tensor: torch.Tensor, entry: Entry) -> torch.Tensor:
    stride = _lengths(entry)
    if len(stride) != tensor.dim() or not _is_dense(tensor.shape, stride):
        entry.fail(f"are no strides of a tensor of shape {list(tensor.shape)}", "save it again")
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a tensor fills its memory, each place once."""
    expected = 1
    for step, size in sorted((st, sz) for st, sz in zip(stride, shape, strict=True) if sz != 1):
        if step != expected:
            return False
        expected *= size
    return all(s < 1 << 62 for s in stride)


def is_trainable(tensor: torch.Tensor) -> bool:
    """Whether a tensor may have a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()
