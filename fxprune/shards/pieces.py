"""Reads a tensor piece by piece, and yields the bytes that stay: no more than a piece is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import RawIOBase
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fxprune.algebra.label import IntArray
from fxprune.errors import LoadError
from fxprune.io.directory import told
from fxprune.shards.changes import Change
from fxprune.shrink.tensors import slice_axes
from fxprune.write_back.fold import Fold

PIECE = 16 << 20  # bytes
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FLOAT = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Piece:
    """Neighbouring rows of a tensor.

    Attributes:
        offset: of the first byte, from that of the tensor.
        shape: its shape.
        cut: the positions in it that stay, by axis.
        first: its place on the first axis of the smaller tensor.
    """

    offset: int
    shape: tuple[int, ...]
    cut: Mapping[int, IntArray]
    first: int = 0


def pieces_of(
    shape: tuple[int, ...],
    cut: Mapping[int, IntArray],
    itemsize: int,
    *,
    limit: int = PIECE,
    rows: bool = False,
) -> Iterator[Piece]:
    """Pieces of at most `limit` bytes, where one row is not more; those of which nothing stays are left out.

    Args:
        shape: of the tensor.
        cut: the positions that stay, by axis.
        itemsize: bytes of a number.
        limit: see above.
        rows: whether a row stays whole, however large it is.
    """
    if 0 in shape:
        return
    if not shape:
        yield Piece(0, (), {})
        return
    row = prod(shape[1:]) * itemsize
    kept = cut.get(0)
    if row > limit and not rows:
        inner = {axis - 1: positions for axis, positions in cut.items() if axis}
        for i in range(shape[0]) if kept is None else kept.tolist():
            for piece in pieces_of(shape[1:], inner, itemsize, limit=limit):
                yield replace(piece, offset=i * row + piece.offset)
        return
    step = max(1, limit // row)
    for low in range(0, shape[0], step):
        high = min(low + step, shape[0])
        if kept is None:
            yield Piece(low * row, (high - low, *shape[1:]), cut, low)
            continue
        first, last = np.searchsorted(kept, (low, high)).tolist()
        if first < last:
            own = {**cut, 0: kept[first:last] - low}
            yield Piece(low * row, (high - low, *shape[1:]), own, first)


def bytes_of(change: Change, stream: RawIOBase, where: str) -> Iterator[memoryview]:
    """The bytes of the smaller tensor, in order.

    Args:
        change: what becomes of a tensor.
        stream: its file.
        where: the file, for messages.

    Raises:
        LoadError: the file cannot be read, or has become shorter.
    """
    tensor, size = change.before, change.before.itemsize
    if size is None or not (change.cut or change.folds):
        for piece in pieces_of((tensor.nbytes,), {}, 1):
            yield memoryview(_read(stream, tensor.start + piece.offset, piece.shape[0], where))
        return
    dtype = _FLOAT[tensor.dtype] if change.folds else _WHOLE[size]
    for piece in pieces_of(tensor.shape, change.cut, size, rows=bool(change.folds)):
        data = _read(stream, tensor.start + piece.offset, prod(piece.shape) * size, where)
        value = slice_axes(torch.frombuffer(data, dtype=dtype).reshape(piece.shape), piece.cut)
        for fold in change.folds:
            value = _part(fold, piece.first, len(value) if value.dim() else 1).of(value)
        numbers: Any = value.contiguous().view(_WHOLE[size]).reshape(-1).numpy()
        yield memoryview(numbers).cast("B")


def _part(fold: Fold, first: int, length: int) -> Fold:
    """What a fold does to some rows of a tensor."""
    if fold.part is None or fold.part[0] != 0:
        return fold
    positions = fold.part[1]
    inside = positions[(positions >= first) & (positions < first + length)] - first
    return replace(fold, part=(0, inside))


def _read(stream: RawIOBase, start: int, length: int, where: str) -> bytearray:
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        with told(Path(where), "read"):
            stream.seek(start + done)
            n = stream.readinto(view[done:])
        if not n:
            raise LoadError(
                "a file has become shorter while it was read",
                where=where,
                do="copy the checkpoint again, and leave it as it is until this has ended",
            )
        done += n
    return data
