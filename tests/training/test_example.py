"""The example of docs/training.md runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_shrink.py"


@pytest.mark.skipif(not EXAMPLE.exists(), reason="examples are not in the wheel")
def test_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("train_shrink", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    history = example.main(tmp_path, epochs=3, steps=2)
    sizes = [row.parameters for row in history.rows]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3
    assert "parameters 5,514 ->" in capsys.readouterr().out
