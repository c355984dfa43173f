"""How a model differs from what its class builds: modules, numbers and sizes; found, and done to a new one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn
from warnings import warn

import torch
from torch import nn

from fxprune.errors import LoadError, OptionError
from fxprune.files.document import Document, Entry
from fxprune.graph.program import named_tensors
from fxprune.io.plain import Reader, Writer
from fxprune.io.tree import find_changes, make_changes, refuse
from fxprune.io.values import Place, constants, is_number, other_names, values_of

KEYS = ("training", "modes", "changes", "absent", "numbers", "cut")
_WRITER, _READER = Writer(), Reader()


def describe(fresh: nn.Module, model: nn.Module) -> dict[str, Any]:
    """What makes of `fresh` a model like `model`, but for its tensors; `fresh` becomes one.

    Raises:
        OptionError: that cannot be said: the class was built otherwise.
    """
    changes = find_changes(fresh, model)
    make_changes(fresh, _entry(changes).items())
    absent = _absent(fresh, model)
    _take_out(fresh, _entry(absent))
    numbers = _numbers(fresh, model)
    for row in numbers:
        _put_number(fresh, _entry(row))
    fresh.train(model.training)
    modes = [p for p, m in model.named_modules() if m.training != model.training]
    _check_constants(fresh, model)
    return {
        "training": model.training,
        "modes": modes,
        "changes": changes,
        "absent": absent,
        "numbers": numbers,
        "cut": dict(_cut(fresh, model)),
    }


def make_like(model: nn.Module, facts: Mapping[str, Entry], tensors: nn.Module) -> None:
    """Changes a new model as `describe` says, and puts tensors in it.

    Args:
        model: as its class built it; it is changed.
        facts: what `describe` returned, by the keys in `KEYS`.
        tensors: a tree of plain modules that holds them.
    """
    make_changes(model, facts["changes"].items())
    _take_out(model, facts["absent"])
    for row in facts["numbers"].items():
        _put_number(model, row)
    _check_sizes(model, facts["cut"], tensors)
    again = other_names(model)
    _put_tensors(model, named_tensors(tensors))
    now = named_tensors(model)
    for place, name in again.items():
        place.put(model, now[name])
    training = facts["training"].flag()
    model.train(training)
    for entry in facts["modes"].items():
        try:
            model.get_submodule(entry.text()).training = not training
        except AttributeError:
            entry.fail("there is no such module", "save it again")


def left_out(fresh: nn.Module, model: nn.Module) -> set[str]:
    """The buffers that a forward made and no state has: what the class builds makes them again."""
    new = named_tensors(model).keys() - named_tensors(fresh).keys()
    found = set()
    for name in new:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf in owner._buffers and leaf in owner._non_persistent_buffers_set:
            found.add(name)
    return found


def _absent(fresh: nn.Module, model: nn.Module) -> list[list[str]]:
    """The module and name of each value that only a new model has in its attributes, such as a forward's cache."""
    return [
        [place.path, place.trail[0]]
        for place in values_of(fresh)
        if len(place.trail) == 1 and place.trail[0] not in vars(model.get_submodule(place.path))
    ]


def _take_out(model: nn.Module, rows: Entry) -> None:
    for row in rows.items():
        path, name = (e.text() for e in row.items(2))
        if Place(path, (name,)) not in values_of(model):
            row.fail(f"there is no value {name[:80]!r}", "build the model as it was before")
        vars(model.get_submodule(path)).pop(name)


def _numbers(fresh: nn.Module, model: nn.Module) -> list[dict[str, Any]]:
    before, after = values_of(fresh), values_of(model)
    tensors = [p for p, x in after.items() if isinstance(x, torch.Tensor)]
    caches = {p.path for p in tensors if not isinstance(before.get(p), torch.Tensor)}
    rows = []
    for place, old in before.items():
        if place not in after or repr(old) == repr(new := after[place]):
            continue
        private = str(place.trail[0]).startswith("_")
        if is_number(old) and is_number(new) and not (private and place.path in caches):
            value = _WRITER.write(_plain(new), str(place))
            rows.append({"module": place.path, "trail": list(place.trail), "value": value})
        elif isinstance(old, str) and isinstance(new, str) and not private:
            warn(
                f"{place} is {new[:40]!r} in the model and {old[:40]!r} in what build makes: texts are not saved",
                UserWarning,
                stacklevel=5,
            )
    return rows


def _plain(x: Any) -> Any:
    """A value with lists and tuples for classes derived from them."""
    if isinstance(x, list | tuple):
        return (list if isinstance(x, list) else tuple)(map(_plain, x))
    return x


def _put_number(model: nn.Module, row: Entry) -> None:
    facts = row.record("module", "trail", "value")
    trail = tuple(e.value for e in facts["trail"].items())
    if not trail or not all(type(t) in (str, int) for t in trail):
        facts["trail"].fail("is no way to a value", "save it again")
    place, new = Place(facts["module"].text(), trail), _READER.read(facts["value"])
    found = values_of(model)
    if place not in found or not is_number(old := found[place]) or not is_number(new):
        row.fail(f"there is no number {str(place)[:80]}", "build the model as it was before")
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        new = _of_class(new, old)
    try:
        place.put(model, new)
    except Exception as error:  # a class may refuse: anything may come
        row.fail(
            f"{str(place)[:80]} cannot be set: {type(error).__name__}: {error}"[:240],
            "give a build that sets it",
        )


def _of_class(new: Any, old: Any) -> Any:
    """A list or tuple as one of the class that was there, which may be `torch.Size` or named."""
    if hasattr(old, "_fields"):
        return type(old)(*new) if len(old._fields) == len(new) else new
    return type(old)(new)


def _check_constants(fresh: nn.Module, model: nn.Module) -> None:
    found = values_of(model)
    for place in constants(fresh):
        if not isinstance(found.get(place), torch.Tensor):
            refuse(str(place), "the model has no tensor there, other than")


def _cut(fresh: nn.Module, model: nn.Module) -> Iterator[tuple[str, list[int]]]:
    before, after = named_tensors(fresh), named_tensors(model)
    lost = sorted(before.keys() - after.keys())
    new = sorted(after.keys() - before.keys() - left_out(fresh, model) - _empty(fresh))
    if lost or new:
        refuse((lost or new)[0], f"the model has {'no' if lost else 'a'} tensor there, other than")
    for name, tensor in before.items():
        if tensor.dim() != after[name].dim():
            refuse(name, f"it has {after[name].dim()} axes in the model, and {tensor.dim()}")
        if tensor.shape != after[name].shape:
            yield name, list(tensor.shape)


def _empty(model: nn.Module) -> set[str]:
    """Names under which a module may have a tensor, and has none."""
    return {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules(remove_duplicate=False)
        for store in (module._parameters, module._buffers)
        for name, tensor in store.items()
        if tensor is None
    }


def _check_sizes(model: nn.Module, cut: Entry, tensors: nn.Module) -> None:
    """Makes sure that the model has the tensors of a tree, of the sizes that they had before they were cut."""
    before, after = named_tensors(model), named_tensors(tensors)
    lost = sorted(before.keys() - after.keys())
    new = sorted(after.keys() - before.keys() - _empty(model))
    if lost or new:
        name = (lost or new)[0][:80]
        _misfit(name, f"it is {'not saved' if lost else 'saved, and not in what was built'}")
    sizes = {name: tuple(e.integer(0) for e in row.items()) for name, row in cut.mapping().items()}
    if unknown := sizes.keys() - after.keys():
        cut.fail(f"{min(unknown)[:80]} is not saved", "save it again")
    for name, tensor in before.items():
        wanted, saved = sizes.get(name, tuple(after[name].shape)), tuple(after[name].shape)
        if tuple(tensor.shape) != wanted:
            _misfit(name, f"its shape is {tuple(tensor.shape)}, and was {wanted}")
        cut_right = len(wanted) == len(saved) and all(
            a == b or 0 < a < b for a, b in zip(saved, wanted, strict=True)
        )
        if not cut_right:
            cut.fail(f"{name} was {wanted}, and is saved as {saved}", "save it again")


def _misfit(name: str, why: str) -> NoReturn:
    raise LoadError(
        "what was built is not the model that was saved",
        where=name,
        why=why,
        do="build the model with the class and the arguments that it had before anything was removed",
    )


def _put_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        store = owner._parameters if isinstance(tensor, nn.Parameter) else owner._buffers
        if leaf not in store:
            _misfit(name, "it is a parameter in one, and a buffer in the other")
        try:
            setattr(owner, leaf, tensor)
        except Exception as error:  # a class may refuse: anything may come
            _misfit(name, f"it cannot be set: {type(error).__name__}: {error}"[:240])


def _entry(data: Any) -> Entry:
    return Document("build", OptionError).parse(json.dumps(data))
