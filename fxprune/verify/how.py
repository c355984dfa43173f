"""How thoroughly results are verified."""

from __future__ import annotations

from typing import Literal

from fxprune.errors import OptionError

How = Literal["local", "full"]
Verify = bool | How
"""What `verify=` takes: "local" or True, "full", or False for nothing."""


def how_to_verify(given: object) -> How | None:
    """Returns the kind of verification that was asked for; None for none.

    Args:
        given: see `Verify`.

    Raises:
        OptionError: it is something else.
    """
    if given is True:
        return "local"
    if given is False:
        return None
    if given in ("local", "full"):
        return given
    raise OptionError(
        f"verify={given!r}",
        why="it says how thoroughly the result is compared with what it was made of",
        do='pass "local" (the changed regions, and the whole once), "full" (the whole in float64), or False',
    )
