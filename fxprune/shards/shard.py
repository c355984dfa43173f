"""One safetensors file: what its header says, checked by the library, and where each tensor's bytes are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

from fxprune.errors import LoadError
from fxprune.files.document import Document, Entry
from fxprune.io.directory import told

_ALIGNED = 8  # the header is filled up with blanks to a multiple of so many bytes
_METADATA = "__metadata__"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        name: its name.
        dtype: its type, as safetensors spells it: F32, BF16.
        shape: its shape.
        start: of its bytes, from the beginning of the file.
        nbytes: how many there are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def itemsize(self) -> int | None:
        """The bytes of one number; None where several numbers share a byte."""
        whole, rest = divmod(self.nbytes, max(1, prod(self.shape)))
        return None if rest else whole


@dataclass(frozen=True)
class Shard:
    """A file of tensors.

    Attributes:
        path: where it is.
        tensors: in the order of their bytes.
        metadata: texts that the file has beside them.
        header: the SHA-256 of its header.
        nbytes: the size of the file.
        modified: when it was last written, in nanoseconds.
    """

    path: Path
    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]
    header: str
    nbytes: int
    modified: int

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name


def read_shard(path: Path) -> Shard:
    """Reads the header of a safetensors file; no tensor is read.

    Raises:
        LoadError: it is no such file, is truncated, or tensors overlap, leave gaps or lie outside of it.
    """
    with told(path, "read"):
        if not path.is_file():
            raise LoadError(
                f"there is no file {path.name}",
                where=str(path),
                do="copy the checkpoint again: the file is missing, or is a folder",
            )
        with safe_open(path, "pt"):  # the library checks types, shapes, offsets and lengths
            pass
        with path.open("rb") as stream:
            length = stream.read(8)
            text = stream.read(int.from_bytes(length, "little"))
        state = path.stat()
    top = Document(str(path), LoadError).parse(text.decode("utf-8")).mapping()
    metadata = top.pop(_METADATA).mapping() if _METADATA in top else {}
    tensors = [_tensor(name, entry, 8 + len(text)) for name, entry in top.items()]
    return Shard(
        path,
        tuple(sorted(tensors, key=lambda t: (t.start, t.nbytes))),
        {name: entry.text() for name, entry in metadata.items()},
        hashlib.sha256(length + text).hexdigest(),
        state.st_size,
        state.st_mtime_ns,
    )


def _tensor(name: str, entry: Entry, base: int) -> StoredTensor:
    facts = entry.record("dtype", "shape", "data_offsets")
    begin, end = (e.integer(0) for e in facts["data_offsets"].items(2))
    shape = tuple(e.integer(0) for e in facts["shape"].items())
    return StoredTensor(name, facts["dtype"].text(), shape, base + begin, end - begin)


def header_of(tensors: Sequence[StoredTensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes before those of the tensors: the length of the header, and the header.

    Args:
        tensors: in the order of their bytes; where they start is worked out.
        metadata: see `Shard`.
    """
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    begin = 0
    for t in tensors:
        offsets = [begin, begin + t.nbytes]
        header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": offsets}
        begin += t.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text
