"""The examples of training run, and the networks get smaller."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

import fxprune as fp

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


def run(name: str, monkeypatch: pytest.MonkeyPatch, **options: int) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**options)


@pytest.mark.skipif(not EXAMPLES.exists(), reason="examples are not in the wheel")
def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("own_method", monkeypatch, epochs=3, steps=2)
    assert abs(result.kept - 0.5) < 0.05
    assert type(result.model).__name__ == "Sequential"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not EXAMPLES.exists(), reason="examples are not in the wheel")
@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("method_in_lightning", ("lightning",)),
        ("method_in_trainer", ("transformers", "accelerate")),
    ],
)
def test_a_method_beside_the_loop_of_a_trainer(
    name: str, needs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in needs:
        pytest.importorskip(package)
    program = run(name, monkeypatch, epochs=3, steps=2)
    assert fp.summary(program).total.macs < 5_000_000
