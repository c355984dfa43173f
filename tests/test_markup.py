"""Pieces of HTML: what is text is escaped, what is HTML is not."""

import pytest

from fxprune.markup import Html, first_rows, join, table, tag

EVIL = "<script>alert('1')</script>&\"\x00\ud800"
SAFE = "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;&amp;&quot;\ufffd\ufffd"


def test_a_text_is_escaped_inside_and_in_attributes() -> None:
    assert tag("p", EVIL, title=EVIL) == f'<p title="{SAFE}">{SAFE}</p>'


def test_html_is_escaped_once() -> None:
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert join(["a", Html("<br>"), "<"], " & ") == "a &amp; <br> &amp; &lt;"


def test_attributes_are_spelled_as_in_html() -> None:
    made = tag("input", type="checkbox", checked=True, hidden=False, class_=None, data_kind="a")
    assert made == '<input type="checkbox" checked data-kind="a">'


def test_what_is_made_of_html_in_another_way_is_text_again() -> None:
    assert tag("p", Html("<b>") + "</b>") == "<p>&lt;b&gt;&lt;/b&gt;</p>"


@pytest.mark.parametrize(("count", "told"), [(3, False), (4, True)])
def test_a_long_table_says_what_it_leaves_out(count: int, told: bool) -> None:
    made = first_rows(("n",), [(i,) for i in range(count)], "numbers", shown=3)
    assert made.count("<tr>") == 4
    assert ("the first 3 of 4 numbers" in made) is told


def test_a_table_escapes_its_cells_and_has_headings_for_columns() -> None:
    made = table(("<a>",), [("<b>",), (1234,)], "<c>")
    assert "<caption>&lt;c&gt;</caption>" in made
    assert '<th scope="col">&lt;a&gt;</th>' in made
    assert "<td>&lt;b&gt;</td>" in made
    assert ">1,234</td>" in made
