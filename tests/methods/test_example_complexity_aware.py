"""The example of docs/methods/complexity-aware.md runs, and removes units."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "complexity_aware.py"


@pytest.mark.skipif(not EXAMPLE.exists(), reason="examples are not in the wheel")
def test_example(capsys: pytest.CaptureFixture[str]) -> None:
    history = runpy.run_path(str(EXAMPLE))["main"](epochs=5)
    sizes = [row.parameters for row in history.rows]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    assert "parameters 9,574 ->" in capsys.readouterr().out
