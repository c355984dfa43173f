"""Remarks on numbers of a model that nothing decides: one for the numbers of each class of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from fxprune.remark import Remark
from fxprune.write_back.choices import Choice

_NAMED = 4  # numbers in one remark


def undecided(
    choices: Iterable[Choice], code: str, equals: Callable[[Sequence[Choice]], str], do: str
) -> Iterator[Remark]:
    """Yields remarks on choices that were left as they are.

    Args:
        choices: the choices.
        code: of the remarks.
        equals: what the numbers of some choices equal, in words.
        do: what the reader can do about one.
    """
    alike: dict[str, list[Choice]] = {}
    for choice in choices:
        alike.setdefault(choice.slots[0].kind, []).append(choice)
    for several in alike.values():
        count = len(several)
        named = ", ".join(map(str, several[:_NAMED]))
        others = f", and {count - _NAMED} others" if count > _NAMED else ""
        one = count == 1 and len(several[0].slots) == 1
        yield Remark(
            "analysis",
            code,
            f"{several[0].slots[0]}{f' and {count - 1} others' if count > 1 else ''}",
            f"{named}{others} {'was left as it is' if one else 'were left as they are'}",
            f"{'it equals' if one else 'they equal'} {equals(several)}, and nothing that was tried depends on "
            f"{'it' if one else 'them'}",
            f"{do.format('it' if one else 'them')}",
        )
