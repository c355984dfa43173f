"""Programs whose weights stay on disk: the same plans and checks as of the network in memory, a tensor at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

import fxprune as fp
from fxprune.errors import LoadError, OptionError, PlanError, ScoreError, VerifyError
from fxprune.graph.evaluate import Evaluator
from fxprune.graph.program import Program
from fxprune.testing.checkpoints import SHARDS, Checkpoint, save

BATCHES = [torch.randint(40, (2, 6), generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
LABELLED = [(x, x.roll(1, 1)) for x in BATCHES]


@pytest.fixture(scope="module", params=[torch.float64, torch.bfloat16], ids=str)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("open"), request.param)


@pytest.fixture(scope="module")
def opened(checkpoint: Checkpoint) -> Program:
    program = fp.capture(checkpoint.meta, BATCHES[0])
    return fp.open_shards(program, checkpoint.source)


@pytest.mark.parametrize("criterion", ["magnitude", "lamp", "wanda", "activation"])
def test_the_plan_is_that_of_the_network_in_memory(
    checkpoint: Checkpoint, opened: Program, criterion: str
) -> None:
    data = BATCHES if criterion in ("wanda", "activation") else None
    found, wanted = (
        fp.prune(p, keep=0.6, importance=criterion, data=data, ignore=["*embed"])
        for p in (opened, checkpoint.program)
    )
    assert wanted.plan.removed.size > 10
    np.testing.assert_array_equal(found.plan.removed, wanted.plan.removed)
    assert all(c.ok for c in found.report.checks)
    assert found.report.checks[0].regions == wanted.report.checks[0].regions
    assert all(t.is_meta for t in found.program.module.parameters())


def test_the_default_with_data_goes_forward_only(opened: Program) -> None:
    chosen, wanda = (
        fp.prune(opened, keep=0.6, data=BATCHES, importance=how, verify=False)
        for how in (None, "wanda")
    )
    np.testing.assert_array_equal(chosen.plan.removed, wanda.plan.removed)


@pytest.mark.parametrize("criterion", ["gauss-newton", "fisher", "taylor"])
def test_gradients_are_refused(opened: Program, criterion: str) -> None:
    with pytest.raises(ScoreError, match="not in memory"):
        fp.prune(opened, keep=0.6, importance=criterion, data=LABELLED)


def test_the_numbers_of_the_smaller_network_are_those_that_stay(
    checkpoint: Checkpoint, opened: Program
) -> None:
    outcome = fp.prune(opened, keep=0.6, importance="magnitude", verify="full")
    in_memory = fp.shrink(checkpoint.program, fp.plan(checkpoint.program, outcome.plan.removed))
    for name, tensor in in_memory.tensors().items():
        read = outcome.program.loaded(name, outcome.program.tensors()[name])
        assert torch.equal(read, tensor)


def test_verification_sees_wrong_numbers(opened: Program) -> None:
    def other(name: str) -> torch.Tensor:
        assert opened.stored is not None
        tensor = opened.stored(name)
        return tensor.flip(0) if name.endswith("blocks.1.up.weight") else tensor

    outcome = fp.prune(opened, keep=0.6, importance="magnitude", verify=False)
    bad = fp.shrink(replace(opened, stored=other), outcome.plan)
    assert fp.verify(opened, outcome.plan, outcome.program).ok
    assert not fp.verify(opened, outcome.plan, bad).ok


def test_layers_go_as_from_the_network_in_memory(checkpoint: Checkpoint, opened: Program) -> None:
    for how in ("block-influence", "magnitude", "loss"):
        data = LABELLED if how == "loss" else BATCHES
        found, wanted = (
            fp.prune_layers(p, data, 1, importance=how, progress=False)
            for p in (opened, checkpoint.program)
        )
        assert [d.path for d in found.deleted] == [d.path for d in wanted.deleted]
        assert all(c.ok for c in found.result.checks)
    smaller = fp.prune(found.program, keep=0.8, data=BATCHES, ignore=["*embed"])
    assert all(c.ok for c in smaller.report.checks)


def test_sensitivity_is_that_of_the_network_in_memory(
    checkpoint: Checkpoint, opened: Program
) -> None:
    found, wanted = (
        fp.sensitivity(p, LABELLED, shares=(0.5,), importance="magnitude", progress=False)
        for p in (opened, checkpoint.program)
    )
    assert found.loss == pytest.approx(wanted.loss, rel=1e-12)
    assert [g.rise for g in found.groups] == [g.rise for g in wanted.groups]


def test_few_tensors_are_in_memory_at_once(
    opened: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as they are read nor in the type of a run."""
    alive: dict[int, int] = {}
    peak, keys = [0], count()

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        key = next(keys)
        alive[key] = tensor.numel()
        weakref.finalize(tensor, alive.pop, key, None)
        peak[0] = max(peak[0], sum(alive.values()))
        return tensor

    reader, ready = opened.stored, Evaluator._ready
    assert reader is not None
    monkeypatch.setattr(Evaluator, "_ready", lambda *given: counted(ready(*given)))
    program = replace(opened, stored=lambda name: counted(reader(name)))
    largest = max(t.numel() for t in opened.tensors().values())
    everything = sum(t.numel() for t in opened.tensors().values())
    for verify in ("local", "full"):
        outcome = fp.prune(program, keep=0.6, data=BATCHES, verify=verify)
        assert all(c.ok for c in outcome.report.checks)
    fp.prune_layers(program, BATCHES, 1)
    assert 0 < peak[0] <= 3 * largest < everything / 2


def test_tensors_that_no_checkpoint_has_are_given(
    checkpoint: Checkpoint, opened: Program, tmp_path: Path
) -> None:
    scales = {k: t for k, t in checkpoint.state.items() if k.endswith("scale")}
    rest = {k: t for k, t in checkpoint.state.items() if k not in scales}
    save(rest, tmp_path / "some", SHARDS)
    program = fp.capture(checkpoint.meta, BATCHES[0])
    with pytest.raises(PlanError, match=r"tensors=\{name: tensor\}"):
        fp.open_shards(program, tmp_path / "some")
    found = fp.open_shards(program, tmp_path / "some", tensors=scales)
    for name, tensor in program.tensors().items():
        assert torch.equal(found.loaded(name, tensor), opened.loaded(name, tensor))
    with pytest.raises(PlanError, match="lacks tensors"):
        fp.open_shards(program, tmp_path / "some", tensors={f"{k}s": t for k, t in scales.items()})
    wrong = {next(iter(scales)): torch.ones(3)}
    with pytest.raises(OptionError, match="no such tensors"):
        fp.open_shards(program, tmp_path / "some", tensors={**scales, **wrong})


def _without(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: t for k, t in state.items() if not k.endswith("1.up.weight")}


def _longer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: t.repeat(2) if k.endswith("1.up.bias") else t for k, t in state.items()}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [(_without, PlanError, "blocks.1.up.weight"), (_longer, LoadError, "shapes of .*1.up.bias")],
)
def test_a_checkpoint_of_another_model_is_refused(
    checkpoint: Checkpoint,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    error: type[Exception],
    says: str,
) -> None:
    save(change(checkpoint.state), tmp_path / "other", SHARDS)
    with pytest.raises(error, match=says):
        fp.open_shards(fp.capture(checkpoint.meta, BATCHES[0]), tmp_path / "other")


def test_a_model_is_no_program(checkpoint: Checkpoint) -> None:
    with pytest.raises(OptionError, match="program is needed"):
        fp.open_shards(checkpoint.meta, checkpoint.source)  # type: ignore[arg-type]


def test_without_numbers_nothing_is_verified(checkpoint: Checkpoint) -> None:
    program = fp.capture(checkpoint.meta, BATCHES[0])
    with pytest.raises(VerifyError, match="open_shards"):
        fp.prune(program, keep=0.6, importance="random")
