"""How inputs and outputs are nested, as JSON; the classes are found among those that are registered."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from torch.utils import _pytree as pytree

from fxprune.capture.caches import register_caches
from fxprune.errors import LoadError
from fxprune.files.document import Entry
from fxprune.io.identifier import check_identifier, read_identifier
from fxprune.io.plain import Reader, Writer
from fxprune.torch_private import nesting, nesting_class, nesting_name, nesting_parts

Spec = pytree.TreeSpec
_FACTORIES: dict[str, Any] = {
    k.__name__: k for k in (bool, dict, float, int, list, set, str, tuple)
}
# Modules that register classes which models of theirs return; no other is imported for a file.
_HOMES = ("transformers.modeling_outputs",)
_WRITER, _READER = Writer(), Reader()


def write_nesting(spec: Spec, where: str) -> Any:
    """How a value is nested, as JSON; null stands for what is not.

    Raises:
        LoadError: a class in it could not be found again.
    """
    if (found := nesting_parts(spec)) is None:
        return None
    kind, context, parts = found
    children = [write_nesting(part, where) for part in parts]
    if kind in (list, tuple):
        return {kind.__name__: children}
    if kind in (dict, OrderedDict):
        return {kind.__name__: _pairs(context, children, where)}
    if kind is defaultdict:
        factory, keys = context
        name = None if factory is None else getattr(factory, "__name__", "")
        if name is not None and _FACTORIES.get(name) is not factory:
            raise _lost(where, f"a defaultdict of {factory}")
        return {"defaultdict": {"factory": name, "items": _pairs(keys, children, where)}}
    if kind is deque:
        return {"deque": {"maxlen": context, "items": children}}
    if kind is namedtuple:  # noqa: PYI024 (pytree's own mark)
        return {"namedtuple": {**_fields(context, where), "items": children}}
    if not (name := nesting_name(kind)) or nesting_class(name) is not kind:
        raise _lost(where, f"{kind.__module__}.{kind.__qualname__}")
    written = _WRITER.write(context, f"{where}, {name}")
    return {"registered": {"name": name, "context": written, "items": children}}


def _pairs(keys: Any, children: list[Any], where: str) -> list[Any]:
    return [[_WRITER.write(k, where), c] for k, c in zip(keys, children, strict=True)]


def _fields(kind: Any, where: str) -> dict[str, Any]:
    fields = [check_identifier(name, f"{where}, {kind.__name__}") for name in kind._fields]
    return {"name": check_identifier(kind.__name__, where), "fields": fields}


def _lost(where: str, what: str) -> LoadError:
    return LoadError(
        f"{what} cannot be saved",
        where=where,
        why="no class of that name is registered with torch.utils._pytree",
        do="return tensors, lists, dicts or named tuples, or register the class",
    )


def read_nesting(entry: Entry) -> Spec:
    """What `write_nesting` wrote; a named tuple is made anew, other classes must be registered."""
    if entry.value is None:
        return pytree.tree_structure(0)
    kinds = entry.mapping()
    ((kind, inner),) = kinds.items() if len(kinds) == 1 else (("", entry),)
    if kind not in _KINDS:
        entry.fail("is no nesting", f"it is one of {', '.join(_KINDS)}")
    return _KINDS[kind](inner)


def _list(entry: Entry) -> Spec:
    return nesting(list, None, _items(entry))


def _tuple(entry: Entry) -> Spec:
    return nesting(tuple, None, _items(entry))


def _items(entry: Entry) -> list[Spec]:
    return [read_nesting(e) for e in entry.items()]


def _dict(entry: Entry) -> Spec:
    return nesting(dict, *_keyed(entry))


def _ordered_dict(entry: Entry) -> Spec:
    return nesting(OrderedDict, *_keyed(entry))


def _keyed(entry: Entry) -> tuple[list[Any], list[Spec]]:
    pairs = [pair.items(2) for pair in entry.items()]
    keys = [_READER.read(key) for key, _ in pairs]
    for key, (place, _) in zip(keys, pairs, strict=True):
        if not isinstance(key, str | int | float | bool | None):
            place.fail("is no key", "write a text or a number")
    if len(set(keys)) < len(keys):
        entry.fail("has a key twice", "list each once")
    return keys, [read_nesting(value) for _, value in pairs]


def _default_dict(entry: Entry) -> Spec:
    facts = entry.record("factory", "items")
    name = facts["factory"]
    factory = None if name.value is None else _FACTORIES[name.text(list(_FACTORIES))]
    keys, parts = _keyed(facts["items"])
    return nesting(defaultdict, [factory, keys], parts)


def _deque(entry: Entry) -> Spec:
    facts = entry.record("maxlen", "items")
    longest = facts["maxlen"]
    limit = None if longest.value is None else longest.integer(0)
    return nesting(deque, limit, _items(facts["items"]))


def _named_tuple(entry: Entry) -> Spec:
    facts = entry.record("name", "fields", "items")
    fields = [read_identifier(e) for e in facts["fields"].items()]
    if len(set(fields)) < len(fields) or any(f.startswith("_") for f in fields):
        facts["fields"].fail("are no names of fields", "write each once, without _ before it")
    parts = [read_nesting(e) for e in facts["items"].items(len(fields))]
    kind = _make_named_tuple(read_identifier(facts["name"]), tuple(fields))
    return nesting(namedtuple, kind, parts)  # noqa: PYI024 (pytree's own mark)


@cache
def _make_named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name, fields)  # noqa: PYI024 (the names come from a file)


def _registered(entry: Entry) -> Spec:
    facts = entry.record("name", "context", "items")
    name = facts["name"].text()
    register_caches()
    home = name.rpartition(".")[0]
    if nesting_class(name) is None and home in _HOMES:
        import_module(_HOMES[_HOMES.index(home)])
    kind = nesting_class(name)
    if kind is None or kind in _PLAIN:
        facts["name"].fail(
            f"no class {name[:80]!r} is registered",
            f"import the package that has it first: import {name.partition('.')[0][:40]}",
        )
    return nesting(kind, _READER.read(facts["context"]), _items(facts["items"]))


_PLAIN = (list, tuple, dict, OrderedDict, defaultdict, deque, namedtuple)  # noqa: PYI024
_KINDS: dict[str, Callable[[Entry], Spec]] = {
    "list": _list,
    "tuple": _tuple,
    "dict": _dict,
    "OrderedDict": _ordered_dict,
    "defaultdict": _default_dict,
    "deque": _deque,
    "namedtuple": _named_tuple,
    "registered": _registered,
}
