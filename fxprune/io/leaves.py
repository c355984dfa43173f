"""Gates and observers as plain data; their classes are found among those that were imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from fxprune import observe
from fxprune.errors import LoadError
from fxprune.files.document import Entry
from fxprune.graph import gate
from fxprune.graph.leaf import Leaf
from fxprune.io.plain import Reader, Writer
from fxprune.plugins import load_plugins

GROUP = "fxprune.leaves"  # entry points of modules that define leaf classes
_OWN = (gate, observe)  # imported, so that their classes are known
_OF_TORCH = frozenset(vars(nn.Module()))
_WRITER, _READER = Writer(), Reader()


def write_leaves(root: nn.Module) -> dict[str, Any]:
    """Class and plain attributes of each leaf module, by path; tensors are saved with the others.

    Raises:
        LoadError: one holds something that is neither a tensor nor a plain value, or cannot be found again.
    """
    found = (item for item in root.named_modules(remove_duplicate=False))
    return {path: _written(path, leaf) for path, leaf in found if isinstance(leaf, Leaf)}


def _written(path: str, leaf: Leaf) -> dict[str, Any]:
    if any(True for _ in leaf.children()) or _classes().get(_name(type(leaf))) is not type(leaf):
        raise LoadError(
            f"a {type(leaf).__name__} cannot be saved",
            where=path,
            why="a leaf module has no modules in it, and its class a name of its own",
            do="define the class at the top of a module",
        )
    plain = {k: v for k, v in vars(leaf).items() if k not in _OF_TORCH}
    return {
        "class": _name(type(leaf)),
        "attributes": {k: _WRITER.write(v, f"{path}.{k}") for k, v in plain.items()},
    }


def put_leaves(tree: nn.Module, rows: Entry) -> None:
    """Puts each leaf module in place of the plain one that holds its tensors."""
    for path, row in rows.mapping().items():
        owner_path, _, name = path.rpartition(".")
        try:
            owner = tree.get_submodule(owner_path)
        except AttributeError:
            row.fail(f"there is no module {owner_path[:80]!r}", "save it again")
        leaf = _made(row)
        plain = owner._modules.get(name)
        if plain is not None:
            if plain._modules:
                row.fail("has modules in it", "save it again")
            for store in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
                vars(leaf)[store] = vars(plain)[store]
        owner._modules[name] = leaf


def _made(row: Entry) -> Leaf:
    facts = row.record("class", "attributes")
    name = facts["class"].text()
    kind = _classes().get(name)
    if kind is None:
        load_plugins(GROUP)
        kind = _classes().get(name)
    if kind is None:
        facts["class"].fail(
            f"no leaf module of the class {name[:80]!r} is known",
            f"import its module first: import {name.partition(':')[0][:80]}",
        )
    leaf = kind.__new__(kind)
    nn.Module.__init__(leaf)
    for key, value in facts["attributes"].mapping().items():
        if not key.isidentifier() or key.startswith("__") or callable(getattr(leaf, key, None)):
            value.fail("is no attribute", "save it again")
        if key in _OF_TORCH:
            value.fail("is an attribute of torch's", "save it again")
        object.__setattr__(leaf, key, _READER.read(value))
    return leaf


def _classes() -> dict[str, type[Leaf]]:
    return {_name(kind): kind for kind in _derived(Leaf)}


def _derived(kind: type[Leaf]) -> Iterator[type[Leaf]]:
    for one in kind.__subclasses__():
        yield one
        yield from _derived(one)


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"
