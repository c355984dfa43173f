"""Takes elements out of the lists of a model, and renumbers those that follow."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from fxprune.graph.program import named_tensors
from fxprune.write_back.changes import prefixes

_NUMBERED = re.compile(r"(.*?)(\d+)")


@dataclass(frozen=True)
class Shorter:
    """A list of modules that has lost elements.

    Attributes:
        path: of the list.
        names: of its elements before.
        gone: the places of the elements that it has lost.
    """

    path: str
    names: tuple[str, ...]
    gone: frozenset[int]

    @property
    def length(self) -> int:
        """How many elements it had."""
        return len(self.names)

    @property
    def left(self) -> list[int]:
        """The old places of the elements that it has now, in order."""
        return [i for i in range(self.length) if i not in self.gone]

    def without(self, entries: Sequence[Any]) -> list[Any]:
        """Entries, one for each element before, without those of elements that are gone."""
        return [entries[i] for i in self.left]

    @cached_property
    def renamed(self) -> dict[str, str]:
        """The old name of each element that is left -> its new one."""
        old = [self.names[i] for i in self.left]
        return dict(zip(old, _new_names(self.names, old), strict=True))

    def new_path(self, path: str) -> str | None:
        """The path of a module now; None where it has left with an element."""
        start = f"{self.path}." if self.path else ""
        name, dot, rest = path.removeprefix(start).partition(".")
        if not path.startswith(start) or name not in self.names:
            return path
        return f"{start}{self.renamed[name]}{dot}{rest}" if name in self.renamed else None


def _new_names(names: Sequence[str], left: Sequence[str]) -> list[str]:
    """Names for the elements that are left: with the first of the old numbers where these followed each other."""
    found = [_NUMBERED.fullmatch(n) for n in names]
    matches = [m for m in found if m is not None]
    numbers = [int(m[2]) for m in matches]
    in_turn = numbers == list(range(numbers[0], numbers[0] + len(names))) if numbers else False
    if not in_turn or len({m[1] for m in matches}) > 1:
        return list(left)
    return [f"{matches[0][1]}{numbers[0] + i}" for i in range(len(left))]


def shorter_lists(model: nn.Module, paths: Iterable[str]) -> list[Shorter]:
    """The lists that lose the modules at some paths; lists inside of others first."""
    lost: dict[str, set[str]] = {}
    for path in paths:
        owner, _, name = path.rpartition(".")
        lost.setdefault(owner, set()).add(name)
    return [
        _without(model, owner, lost[owner])
        for owner in sorted(lost, key=lambda path: -len(list(prefixes(path))))
    ]


def lists_around(model: nn.Module, paths: Iterable[str]) -> list[Shorter]:
    """The lists that the modules at some paths are in, which lose nothing."""
    found = dict.fromkeys(p for path in paths for p in prefixes(path.rpartition(".")[0]))
    lists = nn.ModuleList | nn.Sequential
    return [_without(model, p, ()) for p in found if isinstance(model.get_submodule(p), lists)]


def _without(model: nn.Module, owner: str, names: Collection[str]) -> Shorter:
    every = tuple(model.get_submodule(owner)._modules)
    return Shorter(owner, every, frozenset(i for i, n in enumerate(every) if n in names))


def shorten(model: nn.Module, lists: Iterable[Shorter]) -> None:
    """Takes the elements out."""
    for one in lists:
        held = model.get_submodule(one.path)._modules
        kept = {new: held[old] for old, new in one.renamed.items()}
        held.clear()
        held.update(kept)


def tensor_names(model: nn.Module, paths: Mapping[int, str]) -> dict[str, str]:
    """The name of each tensor of a model whose modules have moved -> its name before.

    Args:
        model: the model now.
        paths: the paths of its modules before, by their ids.
    """
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name in (*module._parameters, *module._buffers):
            if id(module) in paths:
                found[_joined(path, name)] = _joined(paths[id(module)], name)
    held = named_tensors(model)
    return {new: old for new, old in found.items() if new in held}


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
