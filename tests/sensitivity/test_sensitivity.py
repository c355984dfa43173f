"""Sensitivity: each number is the loss of the network that pruning gives, and shares follow from the numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.api import solved
from fxprune.cost import cost_of
from fxprune.errors import BudgetError, FxpruneError, OptionError, ScoreError
from fxprune.graph.evaluate import Evaluator
from fxprune.sensitivity.fill import pieces
from fxprune.sensitivity.result import GroupResponse
from fxprune.testing.training import ConvNet, Mlp, Transformer, make_batches, make_model

KINDS = (ConvNet, Mlp, Transformer)
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = [
    (
        torch.randn(2, 3, 8, 8, generator=GENERATOR),
        torch.randint(5, (2,), generator=GENERATOR),
    )
    for _ in range(2)
]


def measured(kind: Any, **options: Any) -> tuple[fp.Sensitivity, fp.Program, fp.Calibration]:
    model, data = make_model(kind).eval(), fp.Calibration(make_batches(kind, 3))
    program = fp.capture(model, *data.call_of(data.first))
    return fp.sensitivity(program, data, **options), program, data


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_pruned_network(kind: Any) -> None:
    found, program, data = measured(kind, importance="magnitude", shares=(0.25, 0.5))
    assert found.loss == pytest.approx(data.mean_loss(program.module), rel=1e-12)
    assert len(found.groups) >= 2
    for group in found.groups:
        for removed, rise in zip(group.removed, group.rise, strict=True):
            share = 1 - removed / group.units
            small = fp.prune(
                program, keep={group.name: share}, importance="magnitude", verify=False
            ).program
            assert found.loss + rise == pytest.approx(data.mean_loss(small.module), rel=1e-9)


@pytest.mark.parametrize("kind", [ConvNet, Transformer])
def test_the_loss_is_that_of_the_network_without_the_block(kind: Any) -> None:
    found, program, data = measured(kind)
    assert len(found.blocks) == 2
    for block in found.blocks:
        text = f"insert-gates{{where={block.path}}} | set-gates | delete-gated | dead-code"
        small = fp.run(program, None, text, verify=False).program
        assert small.tensors().keys() < program.tensors().keys()
        assert found.loss + block.rise == pytest.approx(data.mean_loss(small.module), rel=1e-9)


class Counted(nn.Module):
    """Counts its calls in a buffer, in place."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.two(self.one(x) * self.calls)


def test_a_network_that_writes_in_place_is_run_anew() -> None:
    model = Counted().double().eval()
    data = [(torch.randn(3, 4).double(), torch.randint(3, (3,)))]
    program = fp.capture(model, data[0][0])
    found = fp.sensitivity(program, data, importance="magnitude", shares=(0.5,))
    small = fp.prune(program, keep={"one": 0.5}, importance="magnitude", verify=False).program
    loss = nn.functional.cross_entropy(small.module(data[0][0]), data[0][1]).item()
    assert found.loss + found.groups[0].rise[0] == pytest.approx(loss, rel=1e-9)
    assert not bool(model.calls)


def test_what_comes_before_a_removal_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(m for _ in range(5) for m in (nn.Linear(4, 4), nn.ReLU())))
    data = [(torch.randn(3, 4), torch.randint(4, (3,)))]
    program = fp.capture(model.eval(), data[0][0])
    ran: list[str] = []
    run_node = Evaluator.run_node

    def counted(self: Evaluator, n: torch.fx.Node) -> Any:
        ran.append(n.name)
        return run_node(self, n)

    monkeypatch.setattr(Evaluator, "run_node", counted)
    found = fp.sensitivity(program, data, importance="magnitude", shares=(0.5,))
    assert len(found.groups) == 4
    assert ran.count("linear") == 1
    assert [ran.count(f"linear_{i}") for i in (1, 2, 3, 4)] == [2, 3, 4, 5]


def test_a_model_is_captured_with_the_first_batch() -> None:
    model, batches = make_model(Mlp).eval(), make_batches(Mlp, 2)
    found = fp.sensitivity(model, batches, shares=(0.5,))
    assert found.name == "Mlp"
    assert [g.removed for g in found.groups] == [(4,), (3,)]
    assert not found.blocks


class Split(nn.Module):
    """Two halves of one layer that nothing couples but the chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.a, self.b = nn.Linear(6, 16), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.up(x).chunk(2, -1)
        return self.a(a.relu()) + self.b(b.relu())


def test_tied_groups_go_together() -> None:
    model = Split().double().eval()
    data = fp.Calibration([(torch.randn(5, 6).double(), torch.randint(3, (5,)))])
    found = fp.sensitivity(model, data, importance="magnitude", shares=(0.5,))
    assert [(len(g.tied), g.units, g.removed) for g in found.groups] == [(2, 8, (4,))]
    keep = found.keep(0.5, "units")
    assert len(keep) == 2
    outcome = fp.prune(model, data.first[0], keep=keep, importance="magnitude")
    assert found.loss + found.groups[0].rise[0] == pytest.approx(
        data.mean_loss(outcome.program.module), rel=1e-9
    )


@pytest.mark.parametrize("metric", ["macs", "params", "units"])
@pytest.mark.parametrize("multiple", [1, 4])
def test_shares_meet_the_budget(program: fp.Program, metric: Any, multiple: int) -> None:
    found = fp.sensitivity(program, IMAGES, blocks=False)
    keep = found.keep(0.6, metric, multiple_of=multiple)
    outcome = fp.prune(program, keep=keep, data=IMAGES, multiple_of=multiple, verify=False)
    axes = solved(program)
    gone = np.zeros(axes.n_units, bool)
    gone[outcome.plan.removed] = True
    if metric == "units":
        share = 1 - gone.sum() / (axes.n_units - 1)
    else:
        cost = cost_of(program, axes, metric)
        share = cost(gone) / cost(np.zeros(axes.n_units, bool))
    coarsest = 1 / 16 if multiple == 1 else 1 / 4  # what a step of the stem's units makes up
    assert 0.6 - coarsest < share <= 0.6


def test_what_was_not_measured_is_not_promised(program: fp.Program) -> None:
    found = fp.sensitivity(program, IMAGES, shares=(0.1,), ignore=("stem",))
    assert [r.where for r in found.remarks if r.code == "sensitivity.left"] == ["stem.0.weight:0"]
    with pytest.raises(BudgetError, match="shares that were measured"):
        found.keep(0.2)


def test_a_curve_that_bends_down_is_taken_as_straight() -> None:
    curve = GroupResponse("a", ("a",), 8, (1, 2, 4, 6), (0.5, 0.1, 0.2, 0.9))
    assert [(p.end, round(p.slope, 9)) for p in pieces(curve)] == [(4, 0.05), (6, 0.35)]


Draw = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


def teacher(seed: int) -> Draw:
    """Draws samples of a problem that can be learned."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 4, generator=generator)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, 8, generator=generator)
        return x, ((x @ weight).sin() + 0.3 * x[:, :4]).argmax(1)

    return draw


def trained(draw: Draw) -> nn.Module:
    """A network with two wide layers and a narrow one between them."""
    sizes = (8, 64, 10, 64, 4)
    parts = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*parts[:-1])
    x, y = draw(4096)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for rows in torch.randperm(4096).repeat(19).view(-1, 512):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("seed", [1, 3])
def test_shares_beat_equal_ones_on_a_trained_network(seed: int) -> None:
    torch.manual_seed(seed)
    draw = teacher(seed)
    program = fp.capture(trained(draw), draw(2)[0])
    data, held_out = fp.Calibration([draw(512)]), fp.Calibration([draw(2048)])
    found = fp.sensitivity(program, data)
    losses = []
    for keep in (0.3, 0.5, 0.7):
        ours = fp.prune(program, keep=found.keep(keep), data=data, verify=False)
        assert ours.report.comparison.ratios["macs"] <= keep
        equal = fp.prune(program, keep=keep, scope="group", data=data, verify=False)
        losses.append([held_out.mean_loss(x.program.module) for x in (ours, equal)])
    assert sum(a for a, _ in losses) < 0.95 * sum(b for _, b in losses), losses


def test_the_table_has_a_row_for_each_group_and_block(program: fp.Program) -> None:
    found = fp.sensitivity(program, IMAGES)
    text = str(found)
    assert text.startswith("Residual: loss ")
    for name in ("stem.0.weight:0", "one.0.weight:0", "two.0.weight:0", "10%", "75%"):
        assert name in text
    assert len(found.blocks) == 2
    assert found.to_json()["groups"][0]["units"] == 16
    assert "residual block" not in str(fp.sensitivity(program, IMAGES, blocks=False))


def test_plot(program: fp.Program, tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    fp.sensitivity(program, IMAGES).plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_is_needed(program: fp.Program) -> None:
    with pytest.raises(ScoreError, match="what the loss of a batch is"):
        fp.sensitivity(program, [torch.randn(2, 3, 8, 8)])


@pytest.mark.parametrize("shares", [(), (0.5, 0.1), (0.0, 0.5), (0.5, 1.0)])
def test_wrong_shares_are_refused(program: fp.Program, shares: Any) -> None:
    with pytest.raises(OptionError, match="shares="):
        fp.sensitivity(program, IMAGES, shares=shares)


def test_a_program_without_data_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    program = fp.capture(model, torch.randn(2, 4, device="meta"))
    with pytest.raises(FxpruneError, match="meta"):
        fp.sensitivity(program, [(torch.randn(2, 4), torch.randint(3, (2,)))])
