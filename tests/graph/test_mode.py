"""Tests of fxprune.graph.mode."""

import torch
from torch import nn

from fxprune.capture.export import capture
from fxprune.graph.mode import MODE, mode_argument, set_training
from fxprune.graph.operands import get_argument


def test_set_training_says_whether_it_changed() -> None:
    program = capture(nn.Sequential(nn.Dropout(0.5)).eval(), torch.randn(2, 4))
    assert set_training(program.module, True)
    assert not set_training(program.module, True)


def test_no_running_statistics_is_no_switch() -> None:
    model = nn.BatchNorm2d(3, track_running_stats=False).eval()
    program = capture(model, torch.randn(2, 3, 4, 4))
    (node,) = [n for n in program.nodes if "batch_norm" in str(n.target)]
    assert mode_argument(node) == ""
    assert MODE not in node.meta
    assert get_argument(node, "training") is True


def test_counter_comes_and_goes() -> None:
    program = capture(nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4))
    counts = [sum("add_" in n.name for n in program.train(m).nodes) for m in (True, False)]
    assert counts == [1, 0]
    assert program.train().nodes is not None
    assert all("val" in n.meta for n in program.nodes if n.op != "output")


def test_every_dropout_has_a_switch() -> None:
    model = nn.Sequential(nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()).eval()
    program = capture(model, torch.randn(2, 3, 4, 4))
    assert sum(MODE in n.meta for n in program.nodes) == 3
