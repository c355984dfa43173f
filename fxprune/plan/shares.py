"""Shares of units that single groups keep: the first glob that matches a group decides."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fxprune.analysis.group import Group
from fxprune.errors import OptionError
from fxprune.plan.globs import matches, nearest, parameters_in
from fxprune.plan.limits import Limits
from fxprune.remark import Remark

_UNNAMED = "no glob of keep matches it"


@dataclass(frozen=True)
class Shares:
    """The share of its units that each group keeps.

    Attributes:
        of: name of a group -> the share; groups that no glob matches are not listed.
        remarks: on globs that decide nothing, and on tied groups that keep more than they were given.
    """

    of: Mapping[str, float]
    remarks: tuple[Remark, ...]

    def limits(self, groups: Iterable[Group], limits: Limits) -> Limits:
        """The limits with which groups that are not listed stay whole."""
        unnamed = {g.name: _UNNAMED for g in groups if g.name not in self.of}
        return replace(limits, whole={**unnamed, **limits.whole})


def find_shares(
    groups: Sequence[Group],
    keep: Mapping[str, float],
    names: Collection[str],
    paths: Collection[str],
    limits: Limits,
) -> Shares:
    """Finds the share of each group.

    A glob matches a group by its name, or by the path of a module, or of one around it, whose own outputs the group
    cuts. The first one that matches decides. Tied groups keep the largest share that one of them is given.

    Args:
        groups: the groups of a program.
        keep: globs -> shares.
        names: of the program's parameters.
        paths: of its modules.
        limits: which groups are tied.

    Raises:
        OptionError: a glob matches nothing, or modules of which no group cuts the outputs.
    """
    found: dict[str, float] = {}
    remarks: list[Remark] = []
    for glob, share in keep.items():
        hit = _matched(groups, glob, names, paths)
        if not any(g.name not in found for g in hit):
            remarks.append(_decides_nothing(glob))
        for group in hit:
            found.setdefault(group.name, share)
    for tie in limits.ties:
        shares = [found[name] for name in tie if name in found]
        if len(shares) == len(tie) and min(shares) < max(shares):
            remarks.append(_tied(tie, found, max(shares)))
            found.update(dict.fromkeys(tie, max(shares)))
    return Shares(found, tuple(remarks))


def _matched(
    groups: Sequence[Group], glob: str, names: Collection[str], paths: Collection[str]
) -> list[Group]:
    inside = parameters_in(names, paths, glob)
    own = inside or set()
    hit = [g for g in groups if matches(g.name, glob) or _cuts_outputs(g, own)]
    if hit:
        return hit
    if inside is None:
        raise OptionError(
            f"{glob!r} matches no module and no group",
            where="keep=",
            do=nearest(glob, [*paths, *(g.name for g in groups)]),
        )
    raise OptionError(
        f"{glob!r} matches no group",
        where="keep=",
        why="the outputs of the modules that it matches cannot lose units",
        do="take names from fp.groups(program); fp.explain says why an axis stays as it is",
    )


def _cuts_outputs(group: Group, parameters: Collection[str]) -> bool:
    return any(m.param in parameters and m.role != "consumer" for m in group.members)


def _decides_nothing(glob: str) -> Remark:
    return Remark(
        "missed",
        "choose.glob-unused",
        f"keep[{glob!r}]",
        "it decides nothing",
        "globs before it match all of its groups, and the first one that matches decides",
        "write it before those that match more",
    )


def _tied(tie: Sequence[str], given: Mapping[str, float], share: float) -> Remark:
    return Remark(
        "analysis",
        "choose.shares-tied",
        tie[0],
        f"the groups {', '.join(tie)} keep a share of {share:g} each",
        f"they lose equal shares, and were given {', '.join(f'{given[n]:g}' for n in tie)}: the largest counts",
        "give all of them the same share",
    )
