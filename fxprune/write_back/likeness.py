"""Numbers that nothing which was tried reads, known by what they are the same as in every module of their class.

A block keeps `in_chs` and `groups` for a later `reparameterize()`, say. Where these are `in_channels` and `groups` of
its first convolution in all blocks, whatever their sizes, they are so by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from fxprune.write_back.changes import prefixes
from fxprune.write_back.slots import Slot

Sizes = Mapping[str, Mapping[str, int]]
"""Path of a module -> what in it or below it has a size -> the size."""


def sizes_of(model: nn.Module) -> Sizes:
    """The sizes of all tensors of a model, and the numbers of torch's own modules in it."""
    found: dict[str, dict[str, int]] = {}
    for path, module in model.named_modules():
        for name, size in _own(module):
            for outer in prefixes(path):
                inner = path[len(outer) :].removeprefix(".")
                found.setdefault(outer, {})[f"{inner}|{name}"] = size
    return found


def _own(module: nn.Module) -> Iterator[tuple[str, int]]:
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        for axis, size in enumerate(() if tensor is None else tensor.shape):
            yield f"{name}:{axis}", size
    if type(module).__module__.startswith("torch.nn."):
        yield from ((n, x) for n, x in vars(module).items() if type(x) is int)


def sizes_like(slots: Iterable[Slot], before: Sizes, after: Sizes) -> dict[Slot, int]:
    """The new values of one attribute in all modules of a class; none where nothing is the same, or not one thing.

    Args:
        slots: one for each module of the class, whether its sizes have changed or not; their values are the old ones.
        before: the sizes of the model before it was cut.
        after: its sizes now.
    """
    every = list(slots)
    if len({s.value for s in every}) < 2:
        return {}  # it would be the same as too much
    first, *others = every
    same = [
        source
        for source, size in before.get(first.path, {}).items()
        if size == first.value
        and all(before.get(s.path, {}).get(source) == s.value for s in others)
    ]
    found = {tuple(after[s.path][source] for s in every) for source in same}
    return dict(zip(every, found.pop(), strict=True)) if len(found) == 1 else {}
