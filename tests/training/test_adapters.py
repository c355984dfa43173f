"""The callbacks: their logic on stand-ins for the trainers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.testing.training import Mlp, capture, make_batches, make_model, train, weights

PLAN = {"one.weight": (0, [1, 4])}


class Owner(nn.Module):
    """What a trainer trains: it holds the network."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.network: nn.Module = program.module

    def forward(self, x: torch.Tensor) -> Any:
        return self.network(x)


def decide(program: Program, epoch: int) -> fp.Plan | str | None:
    return {0: None, 1: fp.plan(program, PLAN) if epoch == 1 else None, 2: "dead-code"}[epoch]


def drive(callback: Any, end: Any) -> None:
    """Three epochs; the network shrinks after the second."""
    program = callback._program
    owner = Owner(program)
    optimizer = torch.optim.Adam(weights(program), 0.01)
    for epoch in range(3):
        train(owner, optimizer, make_batches(Mlp, 2))
        end(callback, owner, optimizer, epoch)
        assert owner.network is callback.shrinker.module
        assert callback.shrinker.optimizer is optimizer
    assert callback.shrinker.module.get_parameter("one.weight").shape == (6, 5)
    owner.network = nn.Linear(2, 2)
    with pytest.raises(fp.training.TrainingError, match="another network"):
        end(callback, owner, optimizer, 2)


def test_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("lightning.pytorch.callbacks")
    fake.Callback = type("Callback", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", ModuleType("lightning.pytorch"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch.callbacks", fake)

    def end(callback: Any, owner: Owner, optimizer: Any, epoch: int) -> None:
        trainer = SimpleNamespace(
            optimizers=[optimizer], lr_scheduler_configs=[], current_epoch=epoch
        )
        callback.on_train_epoch_end(trainer, owner)

    drive(fp.training.lightning_callback(capture(make_model(Mlp)), decide), end)


def test_trainer_of_transformers() -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    from transformers import TrainerCallback

    callback = fp.training.trainer_callback(capture(make_model(Mlp)), decide)
    assert isinstance(callback, TrainerCallback)

    def end(callback: Any, owner: Owner, optimizer: Any, epoch: int) -> None:
        wrapped = SimpleNamespace(optimizer=optimizer)  # as accelerate does
        state = SimpleNamespace(epoch=epoch + 1.0)
        callback.on_epoch_end(None, state, None, model=owner, optimizer=wrapped, lr_scheduler=None)

    drive(callback, end)


@pytest.mark.parametrize(
    ("name", "package"),
    [("lightning_callback", "lightning.pytorch.callbacks"), ("trainer_callback", "transformers")],
)
def test_what_is_missing_is_said(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(fp.FxpruneError, match="not installed"):
        getattr(fp.training, name)(capture(make_model(Mlp)), decide)


def shrink_twice(program: Program, epoch: int) -> fp.Plan | None:
    return fp.plan(program, PLAN) if epoch < 2 else None


@pytest.mark.filterwarnings("ignore")
def test_trainer_of_transformers_itself(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    program = capture(make_model(Mlp))

    class Judged(Owner):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:  # type: ignore[override]
            return {"loss": nn.functional.cross_entropy(self.network(x), labels)}

    owner, callback = Judged(program), fp.training.trainer_callback(program, shrink_twice)
    inputs, classes = torch.randn(16, 5, dtype=torch.float64), torch.randint(3, (16,))
    options = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=3, use_cpu=True, report_to=[], save_strategy="no"
    )
    data = [{"x": x, "labels": int(y)} for x, y in zip(inputs, classes, strict=True)]
    transformers.Trainer(owner, options, train_dataset=data, callbacks=[callback]).train()
    assert owner.network is callback.shrinker.module
    assert callback.shrinker.module.get_parameter("one.weight").shape == (4, 5)


@pytest.mark.filterwarnings("ignore")
def test_lightning_itself() -> None:
    lightning = pytest.importorskip("lightning")
    program = capture(make_model(Mlp))

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = program.module

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    callback = fp.training.lightning_callback(program, shrink_twice)
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", callbacks=[callback], **quiet)
    data = torch.utils.data.TensorDataset(
        torch.randn(16, 5, dtype=torch.float64), torch.randint(3, (16,))
    )
    module = Module()
    trainer.fit(module, torch.utils.data.DataLoader(data, 8))
    assert module.network is callback.shrinker.module
    assert callback.shrinker.module.get_parameter("one.weight").shape == (4, 5)
