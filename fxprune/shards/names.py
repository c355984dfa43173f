"""Which tensor of a model each tensor of a checkpoint is: their names may differ by a prefix."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fxprune.errors import PlanError, some

_PROBES = 8
_DO = {
    "the plan": "give the checkpoint of the model that the plan was made of; for tensors that are not saved, such as "
    "frequencies of rotary positions, pass the model (model=, --model)",
    "the program": "give the checkpoint of this model; pass tensors that are not saved, such as frequencies of rotary "
    "positions: tensors={name: tensor}",
}


@dataclass(frozen=True)
class Prefix:
    """How names of a checkpoint become those of a model.

    Attributes:
        text: a module path with a dot at its end, such as `model.`; "" where names are the same.
        stripped: whether names of the checkpoint have it, and not those of the model.
    """

    text: str = ""
    stripped: bool = True

    def own(self, stored: str) -> str | None:
        """The name in the model; None for what lies outside of it."""
        if not self.stripped:
            return self.text + stored
        return stored.removeprefix(self.text) if stored.startswith(self.text) else None


def find_names(
    stored: Collection[str],
    needed: Sequence[Collection[str]],
    source: str,
    of: str = "the plan",
) -> Mapping[str, str | None]:
    """The name in the model of each tensor of a checkpoint; None for what lies outside of the prefix.

    Args:
        stored: names in the checkpoint.
        needed: tensors of the model, each with all its names, of which the checkpoint must have one.
        source: the checkpoint, for messages.
        of: whose tensors are needed, for messages.

    Raises:
        PlanError: the checkpoint lacks tensors, by whatever prefix, or more than one prefix fits.
    """
    trials = {p: _missing(p, stored, needed) for p in _prefixes(stored, needed)}
    if not trials[Prefix()]:
        return {name: name for name in stored}
    fitting = [p for p, missing in trials.items() if not missing]
    if len(fitting) > 1:
        raise PlanError(
            f"the checkpoint holds the tensors of {of} more than once",
            where=source,
            why=f"under {some([repr(p.text) for p in fitting])}",
            do="give a checkpoint of the model alone",
        )
    if not fitting:
        missing = min(trials.values(), key=len)
        raise PlanError(
            f"the checkpoint lacks tensors of {of}",
            where=source,
            why=f"{len(missing)} are missing: {some(missing)}; it has {some(sorted(stored))}",
            do=_DO[of],
        )
    return {name: fitting[0].own(name) for name in stored}


def renamed(stored: str, own: str, new: str) -> str:
    """The name in a checkpoint of a tensor that its model calls otherwise now.

    Args:
        stored: its name in the checkpoint before.
        own: its name in the model before, which differs from that by a prefix of one of them.
        new: its name in the model now.
    """
    if stored.endswith(own):
        return stored.removesuffix(own) + new
    return new.removeprefix(own.removesuffix(stored))


def _prefixes(stored: Iterable[str], needed: Sequence[Collection[str]]) -> list[Prefix]:
    found = {Prefix(): None}
    wanted = [name for names in needed[:_PROBES] for name in names]
    for here in stored:
        for name in wanted:
            if here.endswith(f".{name}"):
                found[Prefix(here.removesuffix(name))] = None
            elif name.endswith(f".{here}"):
                found[Prefix(name.removesuffix(here), stripped=False)] = None
    return list(found)


def _missing(prefix: Prefix, stored: Iterable[str], needed: Iterable[Collection[str]]) -> list[str]:
    there = {prefix.own(name) for name in stored}
    return [min(names) for names in needed if not there.intersection(names)]
