"""The module tree: what each module and all in it cost before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from fxprune.markup import Html, join, tag
from fxprune.report.html.numbers import bar, change, share
from fxprune.report.html.page import Section
from fxprune.report.summary import Comparison, Row

_DEEPEST = 40  # levels; what lies deeper is one name
_FIRST_SEEN = 40  # lines of the tree that are open from the start

_NOTHING = Row("", "", ())
_ABOUT = (
    "Light bars are sizes before, dark bars what is left. Their lengths compare the modules next to each other; a "
    "module counts all in it."
)


@dataclass
class _Module:
    """A module with all in it.

    Attributes:
        name: the last part of its path.
        own: its own cost before and after.
        inner: the modules in it.
        total: the cost before and after of it and of all in it, after `add_up`.
    """

    name: str
    own: tuple[Row, Row] = (_NOTHING, _NOTHING)
    inner: dict[str, _Module] = field(default_factory=dict)
    total: tuple[Row, Row] = (_NOTHING, _NOTHING)

    def add_up(self) -> tuple[Row, Row]:
        """Works out the total of every module below and of this one, and returns the latter."""
        before, after = self.own
        for module in self.inner.values():
            a, b = module.add_up()
            before, after = before + a, after + b
        self.total = before, after
        return self.total

    def levels(self, depth: int = 0) -> Iterator[int]:
        """The depth of every module."""
        yield depth
        for module in self.inner.values():
            yield from module.levels(depth + 1)


def modules(comparison: Comparison) -> Section:
    """The tree, open as far as it fits a screen."""
    root = _Module(comparison.before.name)
    for before, after in comparison.rows():
        module = root
        for name in before.path.split(".", _DEEPEST) if before.path else ():
            module = module.inner.setdefault(name, _Module(name))
        module.own = before, after
    root.add_up()
    head = [tag("span", text) for text in ("module", "class", "output", "parameters", "MACs")]
    buttons = [
        tag("button", text, type="button", data_open=value, hidden=True)
        for text, value in (("Open all", "yes"), ("Close all", "no"))
    ]
    tree = tag(
        "div",
        tag("div", *head, class_="row head", aria_hidden="true"),
        _drawn(root, 0, _open_levels(root), root.total[0]),
        class_="tree",
        id="tree",
    )
    body = [tag("p", _ABOUT), tag("p", *buttons, class_="tools", data_for="tree"), tree]
    return Section("modules", "Modules", join(body))


def _open_levels(root: _Module) -> int:
    """How many levels are open: as many as keep the lines few."""
    counts = Counter(root.levels())
    lines, level = counts[0], 0
    while level + 1 in counts and lines + counts[level + 1] <= _FIRST_SEEN:
        level += 1
        lines += counts[level]
    return max(level, 1)


def _drawn(module: _Module, depth: int, opened: int, largest: Row) -> Html:
    line = _line(module.name, module.own, module.total, largest)
    style = f"--d:{depth}"
    if not module.inner:
        return tag("div", *line, class_="row", style=style)
    inner = [m.total[0] for m in module.inner.values()]
    widest = Row("", "", (), max(r.parameters for r in inner), max(r.macs for r in inner))
    below = [_drawn(m, depth + 1, opened, widest) for m in module.inner.values()]
    own = module.own[0]
    if own.parameters or own.macs:
        itself = _line("(itself)", module.own, module.own, widest)
        below.insert(0, tag("div", *itself, class_="row", style=f"--d:{depth + 1}"))
    summary = tag("summary", *line, class_="row", style=style)
    return tag("details", summary, *below, open=depth < opened)


def _line(name: str, own: tuple[Row, Row], total: tuple[Row, Row], largest: Row) -> Iterator[Html]:
    yield tag("span", tag("code", name))
    yield tag("span", own[0].kind)
    yield tag("span", _shapes(*own))
    a, b = total
    yield _amount("parameters", a.parameters, b.parameters, largest.parameters)
    yield _amount("MACs", a.macs, b.macs, largest.macs)


def _shapes(before: Row, after: Row) -> str:
    a, b = ("x".join(map(str, r.output)) for r in (before, after))
    return a if a == b or not b else f"{a} → {b}"


def _amount(what: str, before: int, after: int, largest: int) -> Html:
    """A cell of the tree; what it counts is said to those who do not see the heading."""
    if not before and not after:
        return tag("span")
    text = f"{change(before, after)}" + (f", {share(after, before)}" if after != before else "")
    label = tag("span", f"{what}: ", class_="said")
    return tag("span", label, tag("span", text), bar(before, after, largest))
