"""Globs over the modules of a network: which of its parameters they name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from fxprune.errors import OptionError


def matches(name: str, glob: str) -> bool:
    """Whether a name is the glob itself, or one that it stands for."""
    return name == glob or fnmatchcase(name, glob)


def parameters_in(names: Collection[str], paths: Collection[str], glob: str) -> set[str] | None:
    """The parameters that match a glob, or are in a module that does; None where nothing matches.

    The submodules of a module are included.
    """
    hits = [p for p in paths if matches(p, glob)]
    direct = {n for n in names if matches(n, glob)}
    if not hits and not direct:
        return None
    return direct | {n for n in names if any(n.startswith(f"{hit}.") for hit in hits)}


def nearest(glob: str, names: Collection[str]) -> str:
    """What to do about a glob that matches none of some names."""
    near = get_close_matches(glob, names, 1, cutoff=0.3)
    return f"did you mean {near[0]!r}?" if near else "take paths from fp.summary(program)"


def ignored_parameters(
    names: Collection[str], paths: Collection[str], patterns: Sequence[str]
) -> set[str]:
    """Returns the parameters in modules whose path matches a glob; the submodules of a module are included.

    Raises:
        OptionError: a pattern matches no module.
    """
    found: set[str] = set()
    given: object = patterns
    if (
        isinstance(given, str)
        or not isinstance(given, Iterable)
        or not all(isinstance(p, str) for p in given)
    ):
        raise OptionError(
            f"ignore={given!r} is no list of patterns",
            do='write it as ignore=("fc", "layer1.*")',
        )
    for pattern in patterns:
        inside = parameters_in(names, paths, pattern)
        if inside is None:
            raise OptionError(
                f"ignore pattern {pattern!r} matches no module", do=nearest(pattern, paths)
            )
        found |= inside
    return found
