"""The verification: what was compared with what, and how closely it agreed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxprune.markup import Html, join, tag
from fxprune.report.html.page import Section
from fxprune.verify import Check

_ABOUT = (
    "The smaller network was run beside another computation on the same random inputs. Silenced means that what was "
    "removed contributes nothing in the original: it has to compute the same."
)


def checks(found: Sequence[Check]) -> Section:
    """Every check with its errors."""
    if not found:
        text = "Nothing was compared: the network was pruned with verify=False."
        return Section("checks", "Verification", tag("p", text, class_="note"))
    items = (tag("li", *_check(c)) for c in found)
    return Section(
        "checks", "Verification", join([tag("p", _ABOUT), tag("ul", *items, class_="checks")])
    )


def _check(check: Check) -> list[Html]:
    badge = tag(
        "span", "agrees" if check.ok else "differs", class_=f"badge {'good' if check.ok else 'bad'}"
    )
    first, *rest = str(check).splitlines()
    words = first.removeprefix("agrees").removeprefix("DIFFERS")
    return [badge, join([words, *(tag("p", line.strip()) for line in rest)])]


def seconds(found: Mapping[str, float]) -> Section:
    """How long each stage took."""
    stages = (tag("div", tag("dt", name), tag("dd", f"{s:.2f} s")) for name, s in found.items())
    body = tag("dl", *stages, class_="cards small") if found else Html()
    return Section("seconds", "Time that it took", body)
