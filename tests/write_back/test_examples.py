"""The examples of examples/take_home/ run; that of ultralytics, which no test installs, is tried by hand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "take_home"


@pytest.mark.skipif(not EXAMPLES.exists(), reason="examples are not in the wheel")
@pytest.mark.parametrize(
    ("name", "needs"),
    [("own_network", "torch"), ("timm_classifier", "timm"), ("language_model", "transformers")],
)
def test_example(name: str, needs: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(needs)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
    assert "agrees with the silenced original" in capsys.readouterr().out
