from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import CaptureError
from fxprune.testing.sample import Sample
from fxprune.testing.samples import samples_of_family

quantization: Any = torch.ao.quantization  # its functions have no types
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.parametrize("sample", samples_of_family("quantise"), ids=str)
def test_agrees_with_the_operator(sample: Sample, judge: Callable[[Sample], None]) -> None:
    judge(sample)


def prepared(config: Any) -> nn.Module:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()
    model = nn.Sequential(*layers, nn.Conv2d(6, 2, 1)).train()
    model = quantization.fuse_modules_qat(model, [["0", "1", "2"]])
    model.qconfig = config
    return quantization.prepare_qat(model)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("observing", [False, True])
@pytest.mark.parametrize("backend", ["x86", "qnnpack"])
def test_a_model_in_quantisation_aware_training_is_pruned(
    training: bool, observing: bool, backend: str
) -> None:
    model = prepared(quantization.get_default_qat_qconfig(backend))
    model(x := torch.randn(2, 3, 8, 8))
    if not observing:
        model.apply(quantization.disable_observer)
    outcome = fp.prune(model.train(training), x, keep=0.5)
    small = fp.write_back(copy.deepcopy(model), outcome.plan)
    channels = outcome.program.tensors()["0.weight"].shape[0]
    steps = small.get_buffer("0.weight_fake_quant.scale")
    assert len(steps) == (channels if backend == "x86" else 1)
    assert channels < 8


def test_an_observer_that_has_seen_nothing_couples_nothing() -> None:
    model = prepared(quantization.get_default_qat_qconfig("x86"))
    assert fp.prune(model, torch.randn(2, 3, 8, 8), keep=0.5).report.checks[0].ok


def test_what_observers_have_seen_since_is_saved_and_pruned(tmp_path: Path) -> None:
    model = prepared(quantization.get_default_qat_qconfig("x86"))
    x = torch.randn(2, 3, 8, 8)
    outcome = fp.prune(model, x, keep=0.6)
    module = outcome.program.module
    module(x)  # gives each channel its own step
    fp.save(outcome.program, tmp_path / "net")
    loaded = fp.load(tmp_path / "net").module
    assert torch.equal(loaded(x), module(x))
    plan = fp.plan(outcome.program, fp.groups(outcome.program)[0].units[:1])
    small = fp.shrink(outcome.program, plan)
    assert fp.verify(outcome.program, plan, small).ok
    fp.save(small, tmp_path / "small")
    assert torch.equal(fp.load(tmp_path / "small").module(x), small.module(x))


def test_a_range_that_depends_on_removed_channels_is_said_not_to_be_exact() -> None:
    model = prepared(quantization.get_default_qat_qconfig("x86"))
    model(x := torch.randn(2, 3, 8, 8))
    assert not any(g.exact for g in fp.groups(fp.capture(model.eval(), x)))


def test_fake_quantisation_in_python_is_advised_against() -> None:
    model = prepared(
        quantization.QConfig(
            quantization.default_fake_quant, quantization.default_weight_fake_quant
        )
    )
    with pytest.raises(CaptureError, match="FusedMovingAvgObsFakeQuantize"):
        fp.capture(model.eval(), torch.randn(2, 3, 8, 8))
