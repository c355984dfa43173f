"""The networks that are handed to other tools: pruned, layers deleted, with gates and without."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.graph.program import Program, TracedModule

LOG = logging.getLogger("chaining")
SLOW = (pytest.mark.slow, pytest.mark.timeout(1800))
PUT_IN = (
    "insert-gates{kind=bernoulli} | insert-gates{scope=unit kind=soft} | set-gates{value=0.7}"
    " | insert-observers | insert-observers{stat=mean}"
)


@dataclass(frozen=True, eq=False)
class Network:
    """A network on its way through fxprune.

    Attributes:
        model: the dense one, in eval mode.
        args: its example inputs.
        outcome: what pruning it gave.
        small: pruned, with two residual branches deleted.
        gated: that with gates on blocks and units, and with observers.
    """

    model: nn.Module
    args: tuple[torch.Tensor]
    outcome: fp.Outcome
    small: Program
    gated: Program

    def fresh(self, kind: Literal["small", "gated"]) -> TracedModule:
        """A copy of a program's module, to be changed at will."""
        return copy.deepcopy((self.small if kind == "small" else self.gated).module)

    def batch(self, size: int) -> torch.Tensor:
        """Random images."""
        generator = torch.Generator().manual_seed(size)
        return torch.randn(size, *self.args[0].shape[1:], generator=generator)

    def error(
        self,
        found: Callable[[torch.Tensor], Any],
        wanted: Callable[[torch.Tensor], Any],
        sizes: tuple[int, ...] = (2, 5, 7),
    ) -> float:
        """The largest difference of two callables on batches of some sizes, by the largest number."""
        with torch.no_grad():
            runs = [(found(x), wanted(x)) for x in map(self.batch, sizes)]
        largest = max(relative(a, b) for a, b in runs)
        LOG.info("largest error %.1e", largest)
        return largest


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference by the largest number."""
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-12))


@pytest.fixture(
    scope="session", params=["tiny_vit", "resnet18", pytest.param("vit_b_16", marks=SLOW)]
)
def network(request: pytest.FixtureRequest) -> Network:
    """Each network once for all tests."""
    return build(request.param)


@pytest.fixture(
    scope="session",
    params=["tiny_vit", *(pytest.param(n, marks=SLOW) for n in ("resnet18", "vit_b_16"))],
)
def costly_network(request: pytest.FixtureRequest) -> Network:
    """The same, for tools that take long."""
    return build(request.param)


@cache
def build(name: str) -> Network:
    """Builds, prunes, deletes layers, and puts gates in."""
    torch.manual_seed(0)
    model, where = NETWORKS[name]()
    _randomise(model)
    args = (torch.randn(2, 3, 32, 32),)
    outcome = fp.prune(model, args, keep=0.6)
    closed = " | ".join(f"set-gates{{where={w}}}" for w in where)
    small = fp.run(outcome.program, None, f"insert-gates | {closed} | delete-gated").program
    assert len(list(small.nodes)) < len(list(outcome.program.nodes))
    return Network(model, args, outcome, small, fp.run(small, None, PUT_IN).program)


def _resnet18() -> tuple[nn.Module, tuple[str, ...]]:
    models = pytest.importorskip("torchvision").models
    return models.resnet18(num_classes=10), ("layer2.1", "layer3.1")


def _tiny_vit() -> tuple[nn.Module, tuple[str, ...]]:
    models = pytest.importorskip("torchvision").models
    return models.VisionTransformer(32, 16, 3, 4, 32, 64, num_classes=10), ("*encoder_layer_1*",)


def _vit_b_16() -> tuple[nn.Module, tuple[str, ...]]:
    models = pytest.importorskip("torchvision").models
    model = models.vit_b_16(image_size=32, num_classes=10)
    return model, ("*encoder_layer_3*", "*encoder_layer_8*")


NETWORKS = {"resnet18": _resnet18, "tiny_vit": _tiny_vit, "vit_b_16": _vit_b_16}


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Numbers as after training: fresh batch norms and heads of zeros would hide mistakes."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
    for name, parameter in model.named_parameters():
        if name.startswith("heads") or name.endswith("bias"):
            parameter.normal_(0, 0.1)
    model.eval()
