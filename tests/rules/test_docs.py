from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "rules.md"


@pytest.mark.skipif(not DOCS.exists(), reason="the wheel carries no docs")
def test_the_example_in_the_docs_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    exec(compile(code, str(DOCS), "exec"), {"__name__": "example"})
