"""Tests of fxprune.partial."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.analysis.axes import Axes
from fxprune.analysis.group import find_groups
from fxprune.analysis.solve import solve
from fxprune.errors import CaptureError, LoadError, PlanError, VerifyError
from fxprune.partial import Partial, capture_partial
from fxprune.plan import Plan, plan_removal
from fxprune.shrink import apply_plan
from fxprune.verify import compare_programs


class Block(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(into, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.narrow = nn.Conv2d(12, out, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.narrow(self.norm(self.wide(x)).relu())


class Sorter(nn.Module):
    """Cannot be exported: how often the head runs depends on data; a head sees two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Block(3, 6)
        self.head = Block(6, 4)
        self.never = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, images: list[torch.Tensor]) -> Any:
        maps = [self.body(x[None]) for x in images]
        found = [self.head(m) for m in maps]
        if float(found[0].sum()) > 1e9:
            found = found[:1]
        return [{"map": f * self.scale, "best": f.argmax()} for f in found]


def images(*sizes: int) -> tuple[list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return ([torch.randn(3, s, s, generator=rng) for s in sizes],)


def draw(axes: Axes, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(g.units, min(max(1, len(g) // 3), len(g) - 1), replace=False)
        for g in find_groups(axes)
    ]
    return np.concatenate([np.zeros(0, np.int64), *chosen])


def prune(partial: Partial) -> Plan:
    axes = solve(partial.program)
    return plan_removal(partial.program, axes, draw(axes))


def test_largest_submodules_that_export() -> None:
    model = Sorter().eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    partial = capture_partial(model, images(8, 6))
    assert partial.parts == ("body", "head")
    assert len(partial.instances) == 4
    assert [r.where for r in partial.opaque] == ["the model (Sorter)"]
    assert {n for n, _ in partial.program.module.named_parameters()} == dict(
        model.named_parameters()
    ).keys()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_plan_of_a_partial_program() -> None:
    model = Sorter().eval()
    partial = capture_partial(model, images(8, 6))
    axes = solve(partial.program)
    assert sorted(g.name for g in find_groups(axes)) == ["body.wide.weight:0", "head.wide.weight:0"]
    plan = plan_removal(partial.program, axes, draw(axes))
    small = apply_plan(partial.program, axes, plan)
    assert compare_programs(partial.program, axes, plan, small).ok
    check = partial.verify(plan)
    assert check.ok
    assert check.max_relative_error < 1e-12
    written = partial.apply(plan)
    assert isinstance(written, Sorter)
    assert str(written.head.wide) == str(nn.Conv2d(6, 8, 3, padding=1))
    assert str(written.head.narrow) == str(nn.Conv2d(8, 4, 1))
    assert torch.equal(written.scale, model.scale)
    assert model.head.wide.out_channels == 12
    assert partial.apply(plan, inplace=True) is model
    assert model.head.wide.out_channels == 8


def test_a_wrong_model_is_noticed() -> None:
    partial = capture_partial(Sorter().eval(), images(8))
    plan = prune(partial)
    kept = {n: dict(c) for n, c in plan.kept.items()}
    kept["head.narrow.weight"] = {1: np.roll(kept["head.narrow.weight"][1], 1)}
    assert not partial.verify(replace(plan, kept=kept)).ok


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first = nn.Linear(4, 8)
        self.inner = nn.Sequential(first, nn.Linear(8, 4))
        self.again = first.weight

    def forward(self, x: torch.Tensor) -> Any:
        y = self.inner(x)
        return y if float(y.sum()) > 1e9 else y @ self.again.T


def test_a_tensor_that_the_rest_holds_too_is_frozen() -> None:
    partial = capture_partial(Tied().eval(), (torch.randn(2, 4),))
    assert partial.parts == ("inner",)
    assert not find_groups(solve(partial.program))


class Twice(nn.Module):
    """A submodule of a part is called by the rest, too."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.part(x)
        return y if float(y.sum()) > 1e9 else self.part[0](y)


def test_a_submodule_called_from_outside_is_a_part_of_its_own() -> None:
    partial = capture_partial(Twice().eval(), (torch.randn(2, 4),))
    assert partial.parts == ("part", "part.0")
    assert not find_groups(solve(partial.program))


def test_nothing_to_capture() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> Any:
            return x * self.weight if float(x.sum()) > 0 else x

    with pytest.raises(CaptureError, match="no submodule"):
        capture_partial(Bare(), (torch.randn(2, 3),))


def test_averages_inside_a_part_are_refused_by_apply() -> None:
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Block(3, 6)
            self.head = nn.Sequential(nn.Conv2d(6, 4, 1), Mean())

        def forward(self, images: list[torch.Tensor]) -> Any:
            found = [self.head(self.body(x[None])) for x in images]
            return found[:1] if float(found[0].sum()) > 1e9 else found

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x.mean(1)

    partial = capture_partial(Average().eval(), images(8))
    with pytest.raises(PlanError, match="cannot express"):
        partial.apply(prune(partial))


def test_nothing_to_compare() -> None:
    class Silent(Sorter):
        def forward(self, images: list[torch.Tensor]) -> Any:
            return super().forward(images)[:0]

    partial = capture_partial(Silent().eval(), images(8))
    with pytest.raises(VerifyError, match="nothing that could be compared"):
        partial.verify(prune(partial))


def test_a_model_that_does_not_run() -> None:
    model = Sorter().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CaptureError, match="does not run"):
        capture_partial(model, ([torch.randn(3, 8, 8), torch.randn(5, 8, 8)],))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_size_that_a_forward_spells() -> None:
    class Spelled(Block):
        def forward(self, x: torch.Tensor) -> Any:
            return self.narrow(self.wide(x).reshape(len(x), 12, *x.shape[2:]))

    class Outer(Sorter):
        def __init__(self) -> None:
            super().__init__()
            self.body = Spelled(3, 6)

    partial = capture_partial(Outer().eval(), images(8))
    with pytest.raises(PlanError, match="cannot run at the new sizes"):
        partial.verify(prune(partial))


@pytest.fixture(scope="module")
def outcome() -> fp.Outcome:
    torch.manual_seed(0)
    partial = capture_partial(Sorter().eval(), images(8))
    return fp.prune(partial, keep=0.6)


@pytest.fixture
def folder(outcome: fp.Outcome, tmp_path: Path) -> Path:
    fp.save(outcome, tmp_path / "smaller")
    return tmp_path / "smaller"


def test_saved_model_is_loaded_into_the_same_capture(outcome: fp.Outcome, folder: Path) -> None:
    torch.manual_seed(1)
    partial = capture_partial(Sorter().eval(), images(8))  # other weights
    before = {n: t.clone() for n, t in partial.model.state_dict().items()}
    smaller = partial.load(folder)
    assert outcome.model is not None
    assert isinstance(smaller, Sorter)
    assert smaller.head.wide.out_channels == outcome.model.get_parameter("head.wide.bias").numel()
    ours, wanted = smaller(*images(8, 6)), outcome.model(*images(8, 6))
    assert all(torch.equal(a["map"], b["map"]) for a, b in zip(ours, wanted, strict=True))
    assert all(torch.equal(t, before[n]) for n, t in partial.model.state_dict().items())


def test_plan_of_a_file_is_checked_and_verified(outcome: fp.Outcome, folder: Path) -> None:
    plan = Plan.load(folder / "plan.json")
    partial = capture_partial(Sorter().eval(), images(8))
    assert partial.verify(plan).ok
    other = capture_partial(Sorter().eval(), images(8, 6))
    with pytest.raises(PlanError, match="another program"):
        other.verify(plan)
    with pytest.raises(PlanError, match="another program"):
        other.load(folder)


def test_what_was_saved_is_told_apart(outcome: fp.Outcome, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="pruned in parts"):
        fp.load(folder)
    fp.save(fp.capture(nn.Linear(4, 3), (torch.randn(2, 4),)), tmp_path / "whole")
    partial = capture_partial(Sorter().eval(), images(8))
    with pytest.raises(LoadError, match="a whole program"):
        partial.load(tmp_path / "whole")
    fp.save(outcome, tmp_path / "whole")  # one replaces the other
    assert not (tmp_path / "whole" / "graph.json").exists()


def test_tensors_of_another_model_are_refused(folder: Path) -> None:
    class Longer(Sorter):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.zeros(3))

    partial = capture_partial(Sorter().eval(), images(8))
    partial = replace(partial, model=Longer().eval())
    with pytest.raises(LoadError, match="do not fit Longer"):
        partial.load(folder)


@pytest.mark.slow
def test_detection() -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, box_score_thresh=0.0, box_detections_per_img=10
    ).eval()
    partial = capture_partial(model, ([torch.rand(3, 96, 96)],))
    assert "backbone" in partial.parts
    plan = prune(partial)
    assert partial.verify(plan).max_relative_error < 1e-9


class Dropping(Sorter):
    """Drops inside a part and outside of the parts, and has noise of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_maps, self.drop_rows = nn.Dropout2d(0.3), nn.Dropout(0.3)
        self.body.narrow = nn.Sequential(nn.Dropout(0.3), self.body.narrow)  # type: ignore

    def forward(self, images: list[torch.Tensor]) -> Any:
        maps = [
            torch.dropout(self.drop_maps(self.body(x[None])), 0.2, self.training) for x in images
        ]
        found = [self.head(self.drop_rows(m)) + torch.rand(m.shape[-1]) for m in maps]
        if float(found[0].sum()) > 1e9:
            found = found[:1]
        return [{"map": nn.functional.dropout(f * self.scale)} for f in found]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_with_dropout_agrees_in_both_modes(training: bool) -> None:
    model = Dropping().train(training)
    drawn = torch.get_rng_state()
    partial = capture_partial(model, images(8, 6))
    plan = prune(partial)
    check = partial.verify(plan)
    assert check.ok
    assert check.max_relative_error < 1e-12
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(m.training is training for m in model.modules())
    kept = {n: dict(c) for n, c in plan.kept.items()}
    name = "head.narrow.weight"
    kept[name] = {1: np.roll(kept[name][1], 1)}
    assert not partial.verify(replace(plan, kept=kept)).ok
