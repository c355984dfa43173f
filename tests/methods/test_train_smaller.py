"""One call trains a copy of a model and makes it smaller."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from importlib.metadata import entry_points as installed
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune.testing.training import ConvNet, Mlp, make_batches, make_model
from fxprune.training import Settings, Smaller, TrainingError
from fxprune_passes.methods.by_name import (
    make_entropy,
    make_importance,
    make_layers,
    make_units_and_layers,
)
from fxprune_passes.methods.method import Method


class Fine(nn.Module):
    """Two residual blocks on 16 channels, in which a unit is 1.5 % of the MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
        self.up = nn.ModuleList(nn.Linear(16, 32) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(32, 16) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        found: torch.Tensor = self.head(x)
        return found


DATA: dict[type[nn.Module], Any] = {kind: make_batches(kind, 3) for kind in (ConvNet, Mlp)}
DATA[Fine] = DATA[Mlp]


def train(kind: type[nn.Module], method: Any, keep: float, **options: Any) -> Smaller:
    given = {"metric": "macs", "epochs": 3, "progress": False, "verify": False, **options}
    return fp.train_smaller(make_model(kind), DATA[kind], method, keep, **given)


def codes(result: Smaller) -> set[str]:
    return {r.code for r in result.remarks if r.code.startswith("train-smaller")}


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def agree(result: Smaller, x: torch.Tensor) -> None:
    """The model of the user's class computes what the program does, and has its sizes."""
    assert result.model is not None
    assert not result.model.training
    torch.testing.assert_close(result.model(x), result.program.module(x), rtol=1e-9, atol=1e-9)


@pytest.fixture
def plain() -> Any:
    """A method that removes nothing."""
    return lambda shrinker, wish: Method(shrinker)


def test_units_go_and_are_written_back(tmp_path: Path) -> None:
    model = make_model(ConvNet).eval()
    before, random = bits(model), torch.get_rng_state()
    result = fp.train_smaller(
        model, DATA[ConvNet], make_importance, 0.6, "params", epochs=3, progress=False
    )
    assert not model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert isinstance(result.model, ConvNet)
    agree(result, DATA[ConvNet][1][0])
    counts = [sum(p.numel() for p in m.parameters()) for m in (result.model, model)]
    assert abs(counts[0] / counts[1] - 0.6) < 0.1
    assert not codes(result)
    assert len(result.history.rows) == 3
    pytest.importorskip("matplotlib")
    result.plot(tmp_path / "course.png")
    assert (tmp_path / "course.png").read_bytes().startswith(b"\x89PNG")


def test_units_of_several_changes_become_one_plan() -> None:
    result = train(Mlp, make_importance, 0.5, epochs=5)
    assert sum(bool(change.plans) for change in result.changes) > 1
    agree(result, DATA[Mlp][1][0])


def test_keep_is_reached_by_units_and_layers() -> None:
    result = train(Fine, make_units_and_layers, 0.6, validation=DATA[Mlp])
    before, after = result.comparison.before.total, result.comparison.after.total
    assert abs(after.macs / before.macs / 0.6 - 1) < 0.03
    assert result.kept == after.macs / before.macs
    rows = result.history.rows
    assert all(row.accuracy is not None and "validation_loss" in row.extra for row in rows)
    assert [row.extra["undecided"] for row in rows[1:]] == [0, 0]
    assert f"{result.kept:.1%} of the MACs are left, asked for: 60.0%" in str(result)


def test_deleted_layers_are_not_written_back() -> None:
    result = train(ConvNet, make_layers, 0.6)
    assert result.program.module.training is False
    assert result.kept < 0.6
    assert result.model is None
    assert codes(result) == {"train-smaller.not-written-back", "train-smaller.no-validation"}
    why = next(r.why for r in result.remarks if r.code == "train-smaller.not-written-back")
    assert "layers were deleted (blocks." in why


def test_fused_layers_are_not_written_back() -> None:
    result = train(Mlp, make_entropy, 0.6)
    assert result.comparison.after.total.macs < result.comparison.before.total.macs
    assert result.model is None
    assert codes(result) == {"train-smaller.not-written-back", "train-smaller.metric"}


def test_units_alone_where_there_are_no_blocks() -> None:
    result = train(Mlp, make_units_and_layers, 0.6, validation=DATA[Mlp])
    assert codes(result) == {"train-smaller.no-blocks"}
    assert abs(result.kept - 0.6) < 0.1
    agree(result, DATA[Mlp][1][0])


def test_the_same_seed_gives_the_same_network() -> None:
    one, two = (train(Mlp, make_importance, 0.5) for _ in range(2))
    for a, b in zip(one.program.module.parameters(), two.program.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_dicts_with_a_loss(plain: Any) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(5, 3).double()

        def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.net(features)}

    def loss(module: nn.Module, batch: Any) -> torch.Tensor:
        return cross_entropy(module(features=batch["features"])["logits"], batch["labels"])

    data = [{"features": x, "labels": y} for x, y in DATA[Mlp]]
    result = fp.train_smaller(
        Named(), data, plain, epochs=3, metric="macs", loss=loss, validation=data, progress=False
    )
    assert isinstance(result.model, Named)
    row = result.history.rows[-1]
    assert row.accuracy is None
    assert row.extra["validation_loss"] < result.history.rows[0].extra["validation_loss"]


def test_optimizer_and_scheduler_of_the_user(plain: Any) -> None:
    seen: list[Any] = []

    def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        seen.append(torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))
        made: torch.optim.lr_scheduler.LRScheduler = seen[-1]
        return made

    result = fp.train_smaller(
        make_model(Mlp),
        DATA[Mlp],
        plain,
        epochs=3,
        metric="macs",
        optimizer=lambda p: torch.optim.SGD(p, 1.0),
        scheduler=scheduler,
        progress=False,
    )
    assert seen[0].get_last_lr() == [0.5 ** (3 * len(DATA[Mlp]))]
    assert result.kept == 1


def test_a_loader_without_a_length(plain: Any) -> None:
    class Stream:
        def __iter__(self) -> Iterator[Any]:
            return iter(DATA[Mlp])

    result = fp.train_smaller(
        make_model(Mlp), Stream(), plain, epochs=3, metric="macs", progress=False
    )
    assert [row.steps for row in result.history.rows] == [3, 3, 3]


def test_progress_is_shown(plain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fp.train_smaller(make_model(Mlp), DATA[Mlp], plain, epochs=3, metric="macs")
    assert "epoch 3/3, loss" in capsys.readouterr().err


def test_a_method_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "fxprune_passes.methods.by_name"
    every = [
        EntryPoint("importance", f"{module}:make_importance", "fxprune.methods"),
        EntryPoint("broken", f"{module}:__doc__", "fxprune.methods"),
    ]

    def entries(group: str, name: str | None = None) -> list[EntryPoint]:
        if group != "fxprune.methods":
            return list(
                installed(group=group) if name is None else installed(group=group, name=name)
            )
        return [e for e in every if name in (None, e.name)]

    monkeypatch.setattr("fxprune.plugins.entry_points", entries)
    assert train(Mlp, "importance", 0.5).kept < 0.7
    with pytest.raises(fp.FxpruneError, match="no method 'importanse'") as caught:
        train(Mlp, "importanse", 0.5)
    assert "nearest name is 'importance'" in str(caught.value)
    with pytest.raises(fp.FxpruneError, match="names no builder"):
        train(Mlp, "broken", 0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": 0.0}, "keep is 0.0"),
        ({"keep": 1.0}, "at 1 nothing goes"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"metric": "flops"}, "metric must be latency, macs or params"),
        ({"epochs": 2}, "3 or more"),
        ({"loader": []}, "loader has no batches"),
        ({"loader": iter(DATA[Mlp])}, "loader is an iterator"),
        ({"loader": [torch.ones(4, 5)]}, "not a pair"),
        ({"validation": []}, "validation has no batches"),
        ({"method": 3}, "method is a int"),
        ({"loss": lambda m, b: m(b[0])}, r"the loss is of shape \[4, 3\]"),
        ({"loss": lambda m, b: 1.0}, "the loss is a float"),
        ({"loss": lambda m, b: m(b[0]).sum().detach()}, "has no gradient"),
        ({"loss": lambda m, b: m(b[0]).sum() * float("nan")}, "first batch is nan"),
        ({"optimizer": torch.optim.SGD([torch.ones(1)])}, "optimizer is a SGD"),
        ({"method": make_layers}, "no gate can be inserted"),
        ({"method": make_importance, "momentum": 1}, "does not have all of these options"),
        ({"method": make_importance, "keep": 0.01}, "cannot be reached"),
    ],
)
def test_errors_before_any_training(
    options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any) -> None:
        raise AssertionError("nothing may train")

    monkeypatch.setattr(Method, "step", step)
    model = make_model(Mlp)
    before = bits(model)
    given = {"loader": DATA[Mlp], "method": make_importance, "metric": "macs", "epochs": 3}
    with pytest.raises(fp.FxpruneError, match=says):
        fp.train_smaller(model, progress=False, **{**given, **options})
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_nothing_trains() -> None:
    model = make_model(Mlp).requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter of the model trains"):
        fp.train_smaller(model, DATA[Mlp], make_importance, epochs=3)


@pytest.mark.parametrize(("epochs", "warm_up", "decided"), [(3, 1, 2), (5, 1, 3), (30, 6, 18)])
def test_times(epochs: int, warm_up: int, decided: int) -> None:
    wish = Settings(0.5, "macs", epochs)
    assert (wish.warm_up, wish.decided) == (warm_up, decided)
