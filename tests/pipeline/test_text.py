"""Pipelines as text: round trips, and errors that name the nearest right word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Pass, Pipeline, Repeat, Rewrite
from fxprune.pipeline.kinds import option_fields
from fxprune.pipeline.registry import find_pass, installed


@dataclass(frozen=True)
class Many(Rewrite):
    """Every type of option."""

    name: ClassVar[str] = "many"
    number: int = 1
    share: float = 0.5
    flag: bool = False
    word: str = "a"
    choice: Literal["one", "two"] = "one"
    maybe: float | None = None
    maybe_word: str | None = None
    words: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    either: int | Literal["auto"] = "auto"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        return program


@cache
def classes() -> list[type[Pass]]:
    """The installed passes that can be loaded, and one of every type of option."""
    return [find_pass(p.name) for p in installed() if p.kind != "broken"] + [Many]


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of the type of an option."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is tuple and inner[-1] is Ellipsis:
        return st.lists(values(inner[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, inner))
    if inner:
        return st.one_of(*map(values, inner))
    plain: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        str: st.text(max_size=8),
        type(None): st.none(),
    }
    return plain[kind]


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    """A pass with any options; what no pass accepts is left at its default."""
    found = draw(st.sampled_from(classes()))
    hints = get_type_hints(found)
    options = {f.name: draw(values(hints[f.name])) for f in option_fields(found)}
    try:
        return found(**options)
    except OptionError:
        return Many()


def pipelines() -> st.SearchStrategy[Pipeline]:
    """Passes, and loops around them."""
    plain = st.lists(passes(), max_size=3).map(Pipeline)
    loops = st.builds(Repeat, plain, max=st.integers(1, 9))
    return st.lists(passes() | loops, max_size=3).map(Pipeline)


def find(name: str) -> type[Pass]:
    return next((c for c in classes() if c.name == name), None) or find_pass(name)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pipelines())
def test_text_is_read_back(pipeline: Pipeline) -> None:
    assert Pipeline.parse(str(pipeline), find) == pipeline


def test_text_is_short() -> None:
    steps: list[Pass | Repeat] = [
        Many(),
        Repeat(Pipeline([Many(share=0.25, words=("x", "y z"))]), max=4),
    ]
    text = 'many | repeat{until=unchanged max=4}(many{share=0.25 words="x,y z"})'
    assert str(Pipeline(steps)) == text


def test_none_can_be_a_word() -> None:
    assert str(Pipeline([Many(maybe_word="none")])) == 'many{maybe-word="none"}'
    assert Pipeline.parse("many{maybe-word=none maybe=none}", find) == Pipeline([Many()])


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_text_is_no_pass(text: str) -> None:
    assert Pipeline.parse(text) == Pipeline([])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("drop-identty", "the nearest name is 'drop-identity'"),
        ("many{shre=1}", "the nearest is 'share'"),
        ("many{choice=twoo}", "the nearest is 'two'"),
        ("many{number=half}", "'half' is no int"),
        ("many{share=half}", "'half' is no float"),
        ("many{flag=yes}", "none of true, false"),
        ("many{pair=1}", "1 values in place of 2"),
        ("many{either=x}", "none of auto"),
        ("many{number=1 number=2}", "given twice"),
        ("many |", "a name or value is missing"),
        ("many many", "something is left over"),
        ('many{word="x}', "a quote is not closed"),
        ("repeat{max=0}(many)", "give max >= 1"),
        ("repeat{max=4}", "'(' is missing"),
        ("fx", "missing 1 required positional argument: 'call'"),
    ],
)
def test_error_names_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(OptionError) as caught:
        Pipeline.parse(text, find)
    assert says in str(caught.value)


def test_error_points_at_the_place() -> None:
    with pytest.raises(OptionError) as caught:
        Pipeline.parse("many | many many", find)
    line, mark = caught.value.where.splitlines()
    assert line[mark.index("^") - 8 :] == "many"


def test_a_name_of_two_packages_is_an_error_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    two = [EntryPoint("twice", f"package{i}:Twice", "fxprune.passes") for i in (1, 2)]

    def entries(group: str, name: str | None = None) -> list[EntryPoint]:
        return [e for e in two if name in (None, e.name)]

    for module in ("fxprune.pipeline.registry", "fxprune.plugins"):
        monkeypatch.setattr(f"{module}.entry_points", entries)
    assert [p.kind for p in installed()] == ["broken", "broken"]
    with pytest.raises(OptionError, match="2 packages have a pass 'twice'") as caught:
        Pipeline.parse("twice")
    assert caught.value.where == "package1:Twice, package2:Twice"


def test_something_else_than_a_pass_is_refused() -> None:
    with pytest.raises(OptionError, match="is no pass"):
        Pipeline([replace])  # type: ignore[list-item]
