"""What may be done to a dead module: it leaves its list, another stands in its place, or in that of parts of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from fxprune.write_back.layers.dead import LISTS, Dead, Work
from fxprune.write_back.layers.forms import Call
from fxprune.write_back.layers.zeros import Silent


@dataclass(frozen=True)
class Edits:
    """Changes of a model's modules.

    Attributes:
        leave: the paths of modules that leave their lists.
        put: the paths of modules -> what stands in their place.
    """

    leave: tuple[str, ...] = ()
    put: Mapping[str, nn.Module] = field(default_factory=dict)

    def __or__(self, other: Edits) -> Edits:
        return Edits((*self.leave, *other.leave), {**self.put, **other.put})


def options_for(
    dead: Dead, work: Work, silent: Silent, calls: Mapping[str, Call]
) -> Iterator[Edits]:
    """Yields what may be done to a dead module; first what leaves least behind."""
    parent = work.model.get_submodule(dead.path.rpartition(".")[0])
    chained = isinstance(parent, nn.Sequential)
    if isinstance(parent, LISTS) and (dead.left == "value" or not chained):
        yield Edits(leave=(dead.path,))
    if (call := calls.get(dead.path)) is not None:
        ways = [
            call.pass_on() if dead.left != "zeros" else None,
            call.zeros() if dead.left != "value" else None,
        ]
        yield from (Edits(put={dead.path: new}) for new in ways if new is not None)
    inner = [list(options_for(d, work, silent, calls)) for d in work.within(dead.path, silent)]
    if inner and all(inner):
        for pick in (0, -1) if any(len(options) > 1 for options in inner) else (0,):
            together = Edits()
            for options in inner:
                together |= options[pick]
            yield together
