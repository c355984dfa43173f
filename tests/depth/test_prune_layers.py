"""Layers that matter least are deleted: scores by hand, the deletion by the network with these branches at 0."""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import fxprune as fp
from fxprune.depth.layer import find_layers
from fxprune.errors import BudgetError, OptionError
from fxprune.structure.blocks import find_blocks
from fxprune.testing.latencies import CountedTimer

Tensor = torch.Tensor


class Branch(nn.Module):
    """What a layer adds to its input."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        with torch.no_grad():
            self.down.weight.mul_(scale)
            self.down.bias.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Pair(nn.Module):
    """A layer of two branches, as in a transformer."""

    def __init__(self, width: int, first: float, second: float) -> None:
        super().__init__()
        self.mix, self.feed = Branch(width, first), Branch(width, second)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x)
        return x + self.feed(x)


class Stack(nn.Module):
    """A stem, layers that add more or less, and a head."""

    def __init__(self, scales: tuple[tuple[float, float], ...]) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.layers = nn.ModuleList(Pair(6, *s) for s in scales)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


SCALES = ((3.0, 2.0), (0.02, 0.1), (4.0, 0.01), (0.5, 0.4))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Stack(SCALES).double().eval()


@pytest.fixture(scope="module")
def data() -> fp.Calibration:
    generator = torch.Generator().manual_seed(1)
    return fp.Calibration(
        [
            (
                torch.randn(4, 3, 5, generator=generator).double(),
                torch.randint(3, (4, 3), generator=generator),
            )
            for _ in range(3)
        ]
    )


@pytest.fixture(scope="module")
def captured(model: nn.Module) -> fp.Program:
    return fp.capture(model, torch.randn(2, 3, 5).double())


def deleted(program: fp.Program, *args: Any, **options: Any) -> fp.LayersOutcome:
    """The outcome, where it is not about the checks."""
    return fp.prune_layers(program, *args, verify=False, **options)


def without(model: nn.Module, *numbers: int) -> nn.Module:
    """The model without some of its layers, by hand."""
    small: Any = copy.deepcopy(model)
    small.layers = nn.ModuleList(x for i, x in enumerate(small.layers) if i not in numbers)
    return small


def values(model: Any, x: Tensor) -> list[Tensor]:
    """What goes into each layer, and what comes out of the last."""
    found = [model.stem(x)]
    for layer in model.layers:
        found.append(layer(found[-1]))
    return found


def test_block_influence_is_that_of_the_paper(
    model: nn.Module, captured: fp.Program, data: fp.Calibration
) -> None:
    cosines = torch.stack(
        [
            torch.stack([functional.cosine_similarity(a, b, dim=-1) for a, b in pairwise(v)])
            for v in (values(model, x) for x, _ in data.batches)
        ]
    )
    wanted = 1 - cosines.mean((0, 2, 3))
    found = deleted(captured, data, n=3)
    assert [d.path for d in found.deleted] == [f"layers.{i}" for i in wanted.argsort()[:3].tolist()]
    scores = torch.tensor([d.score for d in found.deleted], dtype=torch.float64)
    torch.testing.assert_close(scores, wanted.sort()[0][:3])


@pytest.mark.parametrize(
    "importance", ["block-influence", "loss", "entropy", "magnitude", "random", "last"]
)
def test_the_program_is_without_the_layers(
    model: nn.Module, captured: fp.Program, data: fp.Calibration, importance: Any
) -> None:
    found = deleted(captured, data, n=2, importance=importance)
    numbers = [int(d.path.rpartition(".")[2]) for d in found.deleted]
    assert len(set(numbers)) == 2
    x = data.first[0]
    torch.testing.assert_close(found.program(x), without(model, *numbers)(x))


def test_the_model_is_of_its_class(model: Any, data: fp.Calibration) -> None:
    found = fp.prune_layers(model, data, n=2)
    assert any(step.checks for step in found.result.steps)
    assert isinstance(found.model, Stack)
    assert len(found.model.layers) == 2
    x = data.first[0]
    torch.testing.assert_close(found.model(x), without(model, 1, 3)(x))
    assert len(model.layers) == 4


def test_loss_is_greedy(model: nn.Module, captured: fp.Program, data: fp.Calibration) -> None:
    found = deleted(captured, data, n=3, importance="loss")
    gone: list[int] = []
    for layer in found.deleted:
        losses = {i: data.mean_loss(without(model, *gone, i)) for i in range(4) if i not in gone}
        gone.append(min(losses, key=losses.__getitem__))
        assert layer.path == f"layers.{gone[-1]}"
        assert layer.score == pytest.approx(losses[gone[-1]], rel=1e-9)


@torch.no_grad()
def test_entropy_is_that_of_signs(model: Any, captured: fp.Program, data: fp.Calibration) -> None:
    found = deleted(captured, data, n=4, importance="entropy")
    x = torch.cat([x for x, _ in data.batches])
    wanted = {}
    for i, (layer, value) in enumerate(zip(model.layers, values(model, x), strict=False)):
        middle = value + layer.mix(value)
        signs = torch.cat([layer.mix.up(value), layer.feed.up(middle)], -1).flatten(0, 1) > 0
        p = signs.double().mean(0)
        bits = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / torch.tensor(2.0).log()
        wanted[f"layers.{i}"] = float(bits.mean())
    assert {d.path: pytest.approx(d.score) for d in found.deleted} == wanted
    assert [d.path for d in found.deleted] == sorted(wanted, key=wanted.__getitem__)


@torch.no_grad()
def test_magnitude_is_the_mean_square_of_weights(model: Any, captured: fp.Program) -> None:
    found = deleted(captured, n=1, importance="magnitude")
    sizes = [
        torch.cat([p.flatten() for p in layer.parameters() if p.dim() > 1]).square().mean().sqrt()
        for layer in model.layers
    ]
    least = min(range(4), key=lambda i: float(sizes[i]))
    assert found.deleted[0].path == f"layers.{least}"
    assert found.deleted[0].score == pytest.approx(float(sizes[least]))


def test_the_last_go_first(captured: fp.Program) -> None:
    found = deleted(captured, n=2, importance="last")
    assert [d.path for d in found.deleted] == ["layers.3", "layers.2"]


def test_branches_go_by_themselves(model: nn.Module, data: fp.Calibration) -> None:
    found = fp.prune_layers(model, data, n=2, unit="branch")
    assert {d.path for d in found.deleted} == {"layers.1.mix", "layers.2.feed"}
    small: Any = copy.deepcopy(model)
    small.layers[1].mix = small.layers[2].feed = nn.Module()
    for part in (small.layers[1].mix, small.layers[2].feed):
        part.forward = torch.zeros_like
    x = data.first[0]
    torch.testing.assert_close(found.program(x), small(x))
    assert found.model is not None
    torch.testing.assert_close(found.model(x), small(x))


@pytest.mark.parametrize(
    ("metric", "keep", "count"), [("layers", 0.5, 2), ("layers", 0.8, 1), ("params", 0.6, 2)]
)
def test_a_share_stays(
    captured: fp.Program, data: fp.Calibration, metric: Any, keep: float, count: int
) -> None:
    found = deleted(captured, data, keep=keep, metric=metric)
    assert len(found.deleted) == count
    if metric != "layers":
        assert found.report.ratios[metric.replace("params", "parameters")] <= keep


def test_macs_left_are_those_of_the_result(captured: fp.Program, data: fp.Calibration) -> None:
    found = deleted(captured, data, keep=0.55)
    whole = found.report.before.total.macs
    assert found.report.after.total.macs == whole - sum(d.macs for d in found.deleted)
    assert found.report.ratios["macs"] <= 0.55


def test_ignored_layers_stay(captured: fp.Program, data: fp.Calibration) -> None:
    found = deleted(captured, data, n=2, ignore=("layers.1", "layers.3.mix"))
    assert {d.path for d in found.deleted} == {"layers.0", "layers.2"}
    with pytest.raises(OptionError, match=r"did you mean 'layers"):
        fp.prune_layers(captured, data, n=2, ignore=("layer.7",))


def test_a_program_gives_a_program(captured: fp.Program, data: fp.Calibration) -> None:
    found = deleted(captured, data, n=1)
    assert found.model is None
    assert not found.remarks
    assert "deleted layer" in str(found)
    assert found.to_json()["deleted"][0]["path"] == found.deleted[0].path


class Rows(nn.Module):
    """Its layers are rows of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Parameter(torch.randn(3, 5, 5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for row in self.rows:
            x = x + (x @ row).relu()
        return self.head(x)


def test_where_the_class_cannot_a_remark_says_why(data: fp.Calibration) -> None:
    found = fp.prune_layers(Rows().double().eval(), data, n=1, verify=False)
    assert found.model is None
    remark = next(r for r in found.remarks if r.code == "layers.not-written-back")
    assert "relu" in remark.why
    assert len(list(found.program.nodes)) < len(list(found.result.original.nodes))


class Widens(nn.Module):
    """A block with a projection on its shortcut, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.one = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.two, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.short(x) + self.one(x).relu()
        x = x + self.two(x).relu()
        return self.head(x.mean((2, 3)))


def test_a_layer_that_changes_the_shape_has_no_influence() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(2, 3, 6, 6), torch.randint(3, (2,)))]
    program = fp.capture(Widens().eval(), data[0][0])
    found = deleted(program, data, n=1)
    assert [d.path for d in found.deleted] == ["two"]
    assert [r.where for r in found.remarks if r.code == "layers.unscored"] == ["one"]
    with pytest.raises(BudgetError, match="1 layers can go"):
        fp.prune_layers(program, data, n=2)
    assert len(deleted(program, data, n=2, importance="loss").deleted) == 2


def test_layers_are_elements_of_lists(captured: fp.Program) -> None:
    blocks = find_blocks(captured)
    found = find_layers(captured, blocks, "layer")
    assert [x.path for x in found] == [f"layers.{i}" for i in range(4)]
    assert len(find_layers(captured, blocks, "branch")) == 8


def test_elements_of_a_sequence_may_have_names() -> None:
    pairs = OrderedDict[str, nn.Module]((name, Pair(5, 1.0, 1.0)) for name in ("early", "late"))
    inside = nn.Sequential(OrderedDict(trunk=nn.Sequential(pairs), head=nn.Linear(5, 3)))
    program = fp.capture(inside.eval(), torch.randn(2, 3, 5))
    found = find_layers(program, find_blocks(program), "layer")
    assert [x.path for x in found] == ["trunk.early", "trunk.late"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 1, "keep": 0.5},
        {"n": 0},
        {"keep": 1.0},
        {"n": 1, "importance": "taylor"},
        {"n": 1, "metric": "units"},
        {"n": 1, "unit": "head"},
    ],
)
def test_wrong_options_are_refused(
    captured: fp.Program, data: fp.Calibration, options: dict[str, Any]
) -> None:
    with pytest.raises(OptionError):
        fp.prune_layers(captured, data, **options)


def test_data_is_needed_where_it_is_read(captured: fp.Program) -> None:
    with pytest.raises(OptionError, match="reads data"):
        fp.prune_layers(captured, n=1)


def test_too_many_are_refused(captured: fp.Program, data: fp.Calibration) -> None:
    with pytest.raises(BudgetError, match="4 layers can go"):
        fp.prune_layers(captured, data, n=5)


def test_layers_go_until_the_latency_is_met(
    model: nn.Module, data: fp.Calibration, tmp_path: Path
) -> None:
    plain = CountedTimer()
    found = fp.prune_layers(
        model,
        data,
        keep=0.6,
        metric="latency",
        latencies=fp.LatencyTable(tmp_path / "a", timer=plain),
    )
    latency = found.latency
    assert latency is not None
    assert 0.3 < latency.ratio <= 0.6
    assert latency.predicted == pytest.approx(latency.ratio, abs=0.02)
    assert "wished 0.6" in str(found)
    # What no operator takes is not predicted: it is measured, and one more layer goes.
    slow = fp.LatencyTable(tmp_path / "b", timer=CountedTimer(overhead=0.4))
    more = fp.prune_layers(model, data, keep=0.6, metric="latency", latencies=slow)
    assert more.latency is not None
    assert more.latency.ratio <= 0.6
    assert len(more.deleted) > len(found.deleted)
    assert [d.path for d in more.deleted][: len(found.deleted)] == [d.path for d in found.deleted]


def test_a_latency_that_no_layer_gives_is_refused(
    model: nn.Module, data: fp.Calibration, tmp_path: Path
) -> None:
    table = fp.LatencyTable(tmp_path / "a", timer=CountedTimer(overhead=2.0))
    with pytest.raises(BudgetError, match="of latency cannot be reached"):
        fp.prune_layers(model, data, keep=0.3, metric="latency", latencies=table)
