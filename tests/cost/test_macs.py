"""MACs agree with torch's own flop counter, before and after a removal."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune as fp
from fxprune.api import solved
from fxprune.cost import Cost, mac_terms, node_macs, param_terms
from fxprune.cost.macs import example_sizes
from fxprune.graph.program import Program


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 12, 3, 2, groups=4),
        nn.ConvTranspose2d(12, 2, 2),
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x, x, x, need_weights=True)[0]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (torchvision.models.resnet18, (2, 3, 64, 64)),
    "mobilenet": (torchvision.models.mobilenet_v2, (1, 3, 64, 64)),
    "vit": (lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64), (3, 3, 32, 32)),
    "transposed": (transposed, (2, 3, 16, 16)),
    "attention": (Attention, (2, 5, 16)),
}


@pytest.fixture(scope="module", params=list(MODELS))
def program(request: pytest.FixtureRequest) -> Program:
    make, shape = MODELS[request.param]
    return fp.capture(make().eval(), (torch.randn(shape),))


@pytest.fixture(scope="module")
def removed(program: Program) -> np.ndarray:
    rng = np.random.default_rng(0)
    gone = np.zeros(solved(program).n_units, bool)
    for group in fp.groups(program):
        gone[rng.choice(group.units, int(0.3 * len(group)), replace=False)] = True
    return gone


@pytest.fixture(scope="module")
def small(program: Program, removed: np.ndarray) -> Program:
    return fp.shrink(program, fp.plan(program, np.flatnonzero(removed)))


def counted(program: Program) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        program(*program.args)
    return int(counter.get_total_flops())


def test_macs_are_half_the_flops(program: Program) -> None:
    assert 2 * sum(node_macs(program).values()) == counted(program)


def test_terms_add_up_to_the_macs(program: Program) -> None:
    axes = solved(program)
    nothing = np.zeros(axes.n_units, bool)
    assert Cost(mac_terms(program, axes), axes.n_units).total(nothing) == sum(
        node_macs(program).values()
    )


def test_terms_foretell_the_macs_of_the_small_program(
    program: Program, removed: np.ndarray, small: Program
) -> None:
    axes = solved(program)
    foretold = Cost(mac_terms(program, axes), axes.n_units).total(removed)
    assert 2 * foretold == 2 * sum(node_macs(small).values()) == counted(small)


def test_terms_foretell_the_parameters(
    program: Program, removed: np.ndarray, small: Program
) -> None:
    axes = solved(program)
    foretold = Cost(param_terms(program, axes), axes.n_units).total(removed)
    assert foretold == sum(p.numel() for p in small.module.parameters())


def test_gradient_is_the_saving_of_one_unit(program: Program) -> None:
    axes = solved(program)
    cost, gone = Cost(param_terms(program, axes), axes.n_units), np.zeros(axes.n_units, bool)
    gradient = cost.gradient(gone)
    gone[1] = True
    assert cost.total(gone) >= cost.total(np.zeros_like(gone)) - gradient[1]


def test_batch_is_the_example_s_own() -> None:
    program = fp.capture(nn.Linear(4, 3), (torch.randn(1, 4),))
    assert sum(node_macs(program).values()) == 12


def test_symbol_of_a_multiple_is_worked_out() -> None:
    program = fp.capture(nn.Linear(4, 3), (torch.randn(6, 4),))
    (node,) = program.graph.find_nodes(op="placeholder")
    assert example_sizes(program).number(node.meta["val"].shape[0] * 4) == 24


def test_unused_parameter_counts_as_fixed() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    model.register_parameter("spare", nn.Parameter(torch.ones(7)))
    program = fp.capture(model, (torch.randn(2, 4),))
    spare = next(t for t in param_terms(program, solved(program)) if t.name == "spare")
    assert (spare.factor, spare.labels) == (7, ())


def test_lstm_counts_every_weight_at_every_step() -> None:
    program = fp.capture(nn.LSTM(4, 3, num_layers=2, batch_first=True), (torch.randn(2, 5, 4),))
    assert sum(node_macs(program).values()) == 2 * 5 * (12 * 4 + 12 * 3 + 12 * 3 + 12 * 3)
