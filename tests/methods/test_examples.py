"""The examples of training run, and the networks get smaller."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.skipif(not EXAMPLES.exists(), reason="examples are not in the wheel")
@pytest.mark.parametrize(
    ("name", "epochs", "steps", "parameters"),
    [
        ("bernoulli_layers", 2, 36, "7,208"),
        ("complexity_aware", 2, 36, "9,574"),
        ("entropy_guided", 3, 15, "3,620"),
        ("neuron_importance", 3, 2, "41,090"),
        ("train_shrink", 3, 2, "5,514"),
    ],
)
def test_example(
    name: str,
    epochs: int,
    steps: int,
    parameters: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)  # as Python does for a script
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    main(epochs=epochs, steps=steps)
    assert f"parameters {parameters} ->" in capsys.readouterr().out
