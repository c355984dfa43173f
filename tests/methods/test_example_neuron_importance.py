"""The example of docs/methods/neuron-importance.md runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "neuron_importance.py"


@pytest.mark.skipif(not EXAMPLE.exists(), reason="examples are not in the wheel")
def test_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("neuron_importance", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    history = example.main(tmp_path, epochs=6, steps=2)
    assert [row.units for row in history.rows] == [80, 80, 64, 48, 32, 25]
    assert "parameters 41,090 ->" in capsys.readouterr().out
