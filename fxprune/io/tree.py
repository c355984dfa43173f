"""Modules that a model has lost since it was built: entries of sequences, and what stands in the place of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from torch import nn

from fxprune.errors import OptionError
from fxprune.files.document import Entry
from fxprune.io.removed import read_filler, write_filler

_NUMBERED = (nn.Sequential, nn.ModuleList)  # whose entries are counted anew when one goes


def find_changes(fresh: nn.Module, model: nn.Module) -> list[dict[str, Any]]:
    """What turns the modules of `fresh` into those of `model`, as JSON; paths are those of `model`.

    Raises:
        OptionError: they differ otherwise.
    """
    return list(_changes(fresh, model, ""))


def _changes(fresh: nn.Module, model: nn.Module, path: str) -> Iterator[dict[str, Any]]:
    if class_name(fresh) != class_name(model):
        refuse(path, f"there is a {class_name(model)} in the model, and a {class_name(fresh)}")
    kept = _kept(fresh, model, path)
    if kept != list(fresh._modules):
        yield {"module": path, "children": kept}
    for before, (name, child) in zip(kept, model._modules.items(), strict=True):
        inner, old = f"{path}.{name}".removeprefix("."), fresh._modules[before]
        filler = None if child is None else write_filler(child, inner)
        if child is None or old is None:
            if child is not old:
                yield {"module": inner, "class": None}
        elif filler is not None and type(child) is not type(old):
            yield {"module": inner, "class": filler}
        else:
            yield from _changes(old, child, inner)


def _kept(fresh: nn.Module, model: nn.Module, path: str) -> list[str]:
    """The names in `fresh` of the children that `model` has, in order."""
    if isinstance(fresh, _NUMBERED) and len(model._modules) < len(fresh._modules):
        for alike in (_could_be, _of_a_class):
            if (found := _matched(fresh, model, alike)) is not None:
                return found
        refuse(path, "entries are left in the model that are not alike to any, in order,")
    new = [name for name in model._modules if name not in fresh._modules]
    if new:
        refuse(f"{path}.{new[0]}".removeprefix("."), "the model has this module, and not")
    lost = [n for n, child in fresh._modules.items() if child is None and n not in model._modules]
    return [n for n in fresh._modules if n in model._modules and n not in lost]


def _matched(
    fresh: nn.Module, model: nn.Module, alike: Callable[[nn.Module, nn.Module], bool]
) -> list[str] | None:
    """The first entries of `fresh` that those of `model` may have been, in order."""
    left = iter(fresh._modules.items())
    kept = [
        next((n for n, m in left if m is not None and alike(m, child)), "")
        for child in model._modules.values()
        if child is not None
    ]
    return kept if all(kept) else None


def _could_be(old: nn.Module, new: nn.Module) -> bool:
    """Whether a module has the parameters of another, none of them larger."""
    before, after = (dict(m.named_parameters()) for m in (old, new))
    return (
        _of_a_class(old, new)
        and list(before) == list(after)
        and all(
            t.dim() == after[n].dim()
            and all(a >= b for a, b in zip(t.shape, after[n].shape, strict=True))
            for n, t in before.items()
        )
    )


def _of_a_class(old: nn.Module, new: nn.Module) -> bool:
    return class_name(old) == class_name(new)


def class_name(module: nn.Module) -> str:
    """The name of a module's class with that of its Python module."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def refuse(path: str, what: str, do: str = "") -> NoReturn:
    """Says that what build makes cannot be turned into the model."""
    raise OptionError(
        "build makes another model",
        where=path or "the model itself",
        why=f"{what} in what build makes",
        do=do or "give build and args that make the model as it was before anything was removed",
    )


def make_changes(model: nn.Module, rows: Sequence[Entry]) -> None:
    """Does what `find_changes` found."""
    for row in rows:
        kind = "children" if "children" in row.mapping() else "class"
        facts = row.record("module", kind)
        owner_path, _, name = facts["module"].text().rpartition(".")
        try:
            owner = model.get_submodule(owner_path)
            module = model.get_submodule(facts["module"].text())
        except AttributeError:
            row.fail(
                "there is no such module in what was built", "build the model as it was before"
            )
        if kind == "children":
            _keep(module, facts[kind])
        elif not name:
            row.fail("is the model itself", "save it again")
        else:
            filler = facts[kind]
            owner._modules[name] = None if filler.value is None else read_filler(filler)


def _keep(module: nn.Module, entry: Entry) -> None:
    names = [e.text() for e in entry.items()]
    if len(set(names)) < len(names) or not set(names) <= module._modules.keys():
        entry.fail("are no modules in it, each once", "build the model as it was before")
    kept = [module._modules[n] for n in names]
    renamed = map(str, range(len(names))) if isinstance(module, _NUMBERED) else names
    module._modules.clear()
    module._modules.update(zip(renamed, kept, strict=True))
