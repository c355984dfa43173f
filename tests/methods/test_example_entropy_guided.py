"""The example of entropy-guided pruning runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "entropy_guided.py"


@pytest.mark.skipif(not EXAMPLE.exists(), reason="examples are not in the wheel")
def test_example(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("entropy_guided_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    program = example.main(rounds=2, steps=4)
    assert not program.training
    assert "weights_left" in capsys.readouterr().out
