"""torch.fx.experimental.optimization before fxprune, and as a pass of its pipelines."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental import optimization

import fxprune as fp
from fxprune.errors import CaptureError
from fxprune.structure.blocks import find_blocks


def _for_inference(model: nn.Module) -> nn.Module:
    return optimization.optimize_for_inference(model, {"mkldnn_layout_optimize": False})


@pytest.mark.parametrize("before", [optimization.fuse, optimization.remove_dropout, _for_inference])
def test_a_graph_that_it_returns_is_pruned(costly_network: Any, before: Any) -> None:
    given = before(costly_network.model)
    assert costly_network.error(given, costly_network.model) <= 1e-4
    outcome = fp.prune(given, costly_network.args, keep=0.6)
    block = find_blocks(outcome.program)[1].path
    text = f"insert-gates | set-gates{{where={block}}} | delete-gated | fold-batchnorm | dead-code"
    result = fp.run(outcome.program, None, text)
    assert result.program(costly_network.batch(5)).shape == (5, 10)
    assert all(step.checks for step in result.steps if step.changed and "set-" not in step.text)


@pytest.mark.parametrize("function", [optimization.fuse, optimization.remove_dropout])
def test_it_runs_as_a_pass(costly_network: Any, function: Any) -> None:
    result = fp.run(costly_network.small, None, [fp.fx_pass(function), "fold-batchnorm"])
    assert costly_network.error(result.program, costly_network.small) <= 1e-4


def test_mkldnn_layouts_cannot_be_captured(costly_network: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        given = optimization.optimize_for_inference(costly_network.model)
    assert costly_network.error(given, costly_network.model) <= 1e-4
    if any(isinstance(m, torch.jit.ScriptModule) for m in given.modules()):
        with pytest.raises(CaptureError, match="scripted module"):
            fp.capture(given, costly_network.args)
