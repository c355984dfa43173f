"""One run of the experiments, on random images: with a checkpoint in the middle, and its table."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.training import Shrinker
from fxprune_passes.methods import BernoulliLayers
from fxprune_passes.methods.method import Method

CHECKOUT = Path(__file__).resolve().parents[1] / "experiments"
pytestmark = pytest.mark.skipif(
    not CHECKOUT.exists(), reason="the experiments are in the checkout only"
)


class StopError(Exception):
    pass


def layers(shrinker: Shrinker, context: Any) -> Method:
    return BernoulliLayers(
        shrinker, context.samples, -20.0, rate=0.5, settle_at=3, seed=context.seed
    )


def make_run(folder: Path, *, control: str = "") -> Any:
    task = import_module("experiments.task")
    training = import_module("experiments.training")
    arm = task.Arm("layers", None if control else layers, control=control)
    length = task.Length(4)
    made = task.Task("table", "residual MLP", "mnist", length, length, (arm,), batch=16)
    return training.Run(made, arm, 0, length, 0.5, folder)


def make_data() -> Any:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (64,), generator=generator)
    data = import_module("experiments.data")
    return data.Data("mnist", images, labels, images[:50], labels[:50], augment=False)


def same(row: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the clock."""
    return {k: v for k, v in row.items() if k not in ("latency", "step", "seconds")}


def test_a_run_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = import_module("experiments.training")
    monkeypatch.setattr(training, "PAUSE", 0.0)
    whole = make_run(tmp_path / "whole").train(make_data(), "cpu")
    save = training._Loop._save

    def save_and_stop(loop: Any) -> None:
        save(loop)
        if loop.epoch == 2:
            raise StopError

    monkeypatch.setattr(training._Loop, "_save", save_and_stop)
    with pytest.raises(StopError):
        make_run(tmp_path / "parts").train(make_data(), "cpu")
    monkeypatch.setattr(training._Loop, "_save", save)
    parts = make_run(tmp_path / "parts").train(make_data(), "cpu")
    assert same(parts) == same(whole)
    assert len(whole["curve"]) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("control", ["random", "magnitude"])
def test_controls_come_to_the_size_asked_for(tmp_path: Path, control: str) -> None:
    row = make_run(tmp_path / "run", control=control).train(make_data(), "cpu")
    assert row["parameters"] / row["dense"]["parameters"] == pytest.approx(0.5, abs=0.02)
    assert row["epochs"] == (5 if control == "magnitude" else 4)


def test_a_table_has_a_line_for_each_arm_and_keeps_the_text_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = import_module("experiments.page")
    run = make_run(tmp_path / "run")
    row = run.train(make_data(), "cpu")
    row |= {"task": "table", "arm": "layers", "torch": "2", "device": "cpu", "commit": "abc"}
    monkeypatch.setattr(page, "TASKS", (run.task,))
    monkeypatch.setattr(page, "FILE", tmp_path / "results.md")
    page.FILE.write_text("Words before.\n")
    page.write([row], full=False)
    first = page.FILE.read_text()
    page.FILE.write_text(first + "\nWords behind.\n")
    page.write([{**row, "test": 0.5}, {**row, "test": 0.25}], full=False)
    text = page.FILE.read_text()
    assert "| layers | 2       | 37.50 ± 17.68 |" in text
    assert text.startswith("Words before.")
    assert text.endswith("Words behind.\n")
