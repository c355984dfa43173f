"""Modules in the place of deleted ones, as JSON: an identity, and what returns zeros or an input in some form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxprune.errors import LoadError
from fxprune.files.document import Entry
from fxprune.io.plain import Reader, Writer, read_dtype
from fxprune.write_back import Removed
from fxprune.write_back.layers.removed import Length, Same, Zeros

_IDENTITY = "Identity"


def write_filler(module: nn.Module, where: str) -> Any:
    """A module that may stand in the place of another, as JSON; None where it is not one of these.

    Raises:
        LoadError: the form in which it returns tensors cannot be saved.
    """
    if type(module) is nn.Identity:
        return _IDENTITY
    if type(module) is Removed:
        if (odd := _odd_class(module.form)) is not None:
            raise LoadError(
                "what stands in the place of a deleted module cannot be saved",
                where=where,
                why=f"it returns its tensors in a {odd.__name__}",
                do="save the program",
            )
        return {"kind": module.kind, "form": _WRITER.write(module.form, where)}
    return None


def _odd_class(form: Any) -> type | None:
    """A class of containers in a form that is not a plain one."""
    if isinstance(form, Mapping) or (isinstance(form, tuple | list) and form):
        if type(form) not in (dict, tuple, list):
            return type(form)
        inner = form.values() if isinstance(form, Mapping) else form
        return next((odd for x in inner if (odd := _odd_class(x)) is not None), None)
    return None


def read_filler(entry: Entry) -> nn.Module:
    """What `write_filler` wrote."""
    if isinstance(entry.value, str):
        entry.text([_IDENTITY])
        return nn.Identity()
    facts = entry.record("kind", "form")
    return Removed(facts["kind"].text(), _READER.read(facts["form"]))


def _write_zeros(zeros: Zeros) -> Any:
    lengths = zeros.lengths and [[n.axis, n.times, n.plus, n.by] for n in zeros.lengths]
    dtype = None if zeros.dtype is None else str(zeros.dtype).removeprefix("torch.")
    return {"like": zeros.like, "lengths": lengths, "dtype": dtype}


def _read_zeros(entry: Entry) -> Zeros:
    facts = entry.record("like", "lengths", "dtype")
    lengths = None
    if facts["lengths"].value is not None:
        lengths = tuple(map(_read_length, facts["lengths"].items()))
    dtype: torch.dtype | None = None
    if facts["dtype"].value is not None:
        dtype = read_dtype(facts["dtype"])
    return Zeros(_read_key(facts["like"]), lengths, dtype)


def _read_length(entry: Entry) -> Length:
    axis, times, plus, by = entry.items(4)
    where = None if axis.value is None else axis.integer(-64, 63)
    return Length(where, times.integer(), plus.integer(), by.integer(1))


def _read_key(entry: Entry) -> str | int:
    return entry.integer(0) if isinstance(entry.value, int) else entry.text()


def _read_same(entry: Entry) -> Same:
    return Same(_read_key(entry))


_WRITER = Writer({"zeros": (Zeros, _write_zeros), "same": (Same, lambda same: same.input)})
_READER = Reader({"zeros": _read_zeros, "same": _read_same})
