"""A text for language models that every installation has: the documentation of torch, as its sources hold it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import torch

PLACES = ("_torch_docs.py", "_tensor_docs.py", "nn/functional.py", "nn/modules/*.py", "optim/*.py")


def torch_docs() -> bytes:
    """The files of `PLACES`, one behind the other, in the order of their names."""
    root = Path(torch.__file__).parent
    return b"".join(file.read_bytes() for place in PLACES for file in sorted(root.glob(place)))


def describe(text: bytes) -> str:
    """Its size and its hash, for tables."""
    return f"{len(text):,} bytes, SHA-256 {sha256(text).hexdigest()[:16]}"
