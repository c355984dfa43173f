"""Draws docs/architecture.svg, the way of the data through the packages: `python scripts/draw_architecture.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "docs" / "architecture.svg"
SIZE = 1120, 510
DATA, CODE = "#e3e8fb", "#dff1ea"  # what is handed on; who works on it
INK, FAINT = "#22263a", "#565c77"
STYLE = f"""<style>
text {{ font-family: system-ui, sans-serif; text-anchor: middle; }}
.data {{ font-size: 15px; font-weight: 600; fill: {INK}; }}
.code {{ font-size: 14px; font-family: ui-monospace, monospace; fill: {INK}; }}
.says {{ font-size: 12px; fill: {FAINT}; }}
</style>"""
HEAD = f"""<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" fill="{FAINT}"/></marker></defs>"""
HALF = 24  # half the height of a box


@dataclass(frozen=True)
class Box:
    """A box by its middle: what stands in it, and what that is."""

    x: int
    y: int
    title: str
    says: str
    fill: str = DATA
    width: int = 168

    def draw(self) -> Iterator[str]:
        left = self.x - self.width // 2
        yield (
            f'<rect x="{left}" y="{self.y - HALF}" width="{self.width}" height="{2 * HALF}"'
            f' rx="8" fill="{self.fill}" stroke="{FAINT}"/>'
        )
        kind = "code" if self.fill == CODE else "data"
        yield f'<text x="{self.x}" y="{self.y - 3}" class="{kind}">{self.title}</text>'
        yield f'<text x="{self.x}" y="{self.y + 14}" class="says">{self.says}</text>'


@dataclass(frozen=True)
class Arrow:
    """A line through points, a head at its end, and the package that does the step."""

    points: tuple[tuple[int, int], ...]
    label: str = ""
    both: bool = False

    def draw(self) -> Iterator[str]:
        path = " ".join(f"{x},{y}" for x, y in self.points)
        start = ' marker-start="url(#head)"' if self.both else ""
        yield (
            f'<polyline points="{path}" fill="none" stroke="{FAINT}" stroke-width="1.5"'
            f'{start} marker-end="url(#head)"/>'
        )
        if self.label:
            (x0, y0), (x1, y1) = self.points[:2]
            yield f'<text x="{(x0 + x1) // 2}" y="{(y0 + y1) // 2 - 8}" class="code">{self.label}</text>'


MODEL = Box(85, 180, "your model", "nn.Module", width=130)
PROGRAM = Box(320, 180, "Program", "graph of ATen calls")
AXES = Box(575, 180, "Axes, Groups", "what goes together")
PLAN = Box(800, 180, "Plan", "what is removed", width=132)
SMALLER = Box(1015, 180, "smaller Program", "the same names", width=176)
PASSES = Box(320, 60, "pipeline", "fxprune_passes, verified", CODE, 176)
RULES = Box(575, 60, "rules, algebra", "one rule per operator", CODE)
SCORES = Box(800, 60, "importance, cost", "which units, at what price", CODE, 196)
SILENCED = Box(575, 310, "silenced original", "removed units count as 0")
VERIFY = Box(1015, 310, "verify", "both agree in float64", CODE)
OUT = (
    Box(320, 450, "training", "the optimizer shrinks too", CODE, 190),
    Box(575, 450, "write_back", "your own class, smaller", CODE, 180),
    Box(800, 450, "io", "plan, graph and weights", CODE, 180),
    Box(1015, 450, "report", "sizes, checks, remarks", CODE),
)
BOXES = (MODEL, PROGRAM, AXES, PLAN, SMALLER, PASSES, RULES, SCORES, SILENCED, VERIFY, *OUT)


def across(a: Box, b: Box, label: str = "") -> Arrow:
    """From one box to another beside it."""
    sign = 1 if b.x > a.x else -1
    return Arrow(
        ((a.x + sign * a.width // 2, a.y), (b.x - sign * b.width // 2 - sign * 3, b.y)), label
    )


def down(a: Box, b: Box, *, both: bool = False) -> Arrow:
    """From one box to another below it."""
    return Arrow(((a.x, a.y + HALF + 3 * both), (a.x, b.y - HALF - 3)), both=both)


def branch(x: int) -> Arrow:
    """From verify to one of the boxes at the bottom."""
    return Arrow(((VERIFY.x, 380), (x, 380), (x, OUT[0].y - HALF - 3)))


ARROWS = (
    across(MODEL, PROGRAM, "capture"),
    across(PROGRAM, AXES, "analysis"),
    across(AXES, PLAN, "plan"),
    across(PLAN, SMALLER, "shrink"),
    down(PASSES, PROGRAM, both=True),
    down(RULES, AXES),
    down(SCORES, PLAN),
    Arrow(
        (
            (PROGRAM.x, PROGRAM.y + HALF),
            (PROGRAM.x, SILENCED.y),
            (SILENCED.x - SILENCED.width // 2 - 3, SILENCED.y),
        )
    ),
    Arrow(
        (
            (PLAN.x, PLAN.y + HALF),
            (PLAN.x, 245),
            (SILENCED.x, 245),
            (SILENCED.x, SILENCED.y - HALF - 3),
        )
    ),
    across(SILENCED, VERIFY),
    down(SMALLER, VERIFY),
    Arrow(((VERIFY.x, VERIFY.y + HALF), (VERIFY.x, OUT[-1].y - HALF - 3))),
    *(branch(box.x) for box in OUT[:-1]),
)


def draw() -> str:
    """The picture, as text."""
    width, height = SIZE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>The way of the data through the packages of fxprune</title>",
        STYLE,
        HEAD,
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
    ]
    parts: tuple[Arrow | Box, ...] = (*ARROWS, *BOXES)
    lines += [line for part in parts for line in part.draw()]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
