"""Tests of dead-units: constants followed, carried, refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.pipeline.result import Result

Rewritten = Callable[..., Result]
Kill = Callable[[nn.Module, list[int], float], None]


X = torch.randn(3, 1, 10, 10, generator=torch.Generator().manual_seed(0)).double()


def shapes(program: Program) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in program.tensors().items() if t.dim() > 1}


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7])
def test_constants_of_all_layers_are_carried(
    rewritten: Rewritten, value: float, lenet: nn.Sequential, kill: Kill
) -> None:
    model = lenet.double()
    kill(model[1], [1, 4], value)  # a factor of 0 in a batch norm
    kill(model[4], [0, 3], value)  # rows of zeros
    kill(model[8], [5], value)
    result = rewritten(model, X, "dead-units")
    assert shapes(result.program) == {
        "0.weight": (4, 1, 3, 3),
        "4.weight": (6, 4, 3, 3),
        "8.weight": (11, 24),
        "10.weight": (5, 11),
    }
    assert result.steps[0].rewrites == 3
    assert result.steps[0].checks


def test_constants_make_constants_behind_them(rewritten: Rewritten, kill: Kill) -> None:
    model = nn.Sequential(
        *(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    )
    model = model.double()
    kill(model[0], [0, 1], 0.3)
    with torch.no_grad():
        model.get_parameter("2.weight")[2, 2:] = 0  # only constants are left of it
    result = rewritten(model, torch.randn(2, 4).double(), "dead-units")
    assert shapes(result.program) == {"0.weight": (4, 4), "2.weight": (4, 4), "4.weight": (3, 4)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_layer_without_a_bias_gets_one(
    rewritten: Rewritten, groups: int, bias: bool, kill: Kill
) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 6, 3, groups=groups, bias=bias)
    ).double()
    kill(model[0], [1, 5], 0.0)
    x = torch.randn(2, 3, 5, 5).double()
    result = rewritten(model, x, "dead-units")
    assert result.program.tensors()["0.weight"].shape[0] == 6
    assert "2.bias" in result.program.tensors()


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_in_front_of_padding_only_zeros_go(rewritten: Rewritten, value: float, kill: Kill) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)).double()
    kill(model[0], [2], value)
    result = rewritten(model, torch.randn(2, 3, 5, 5).double(), "dead-units")
    assert result.changed == (value == 0)
    if value:
        (left,) = result.select(kind="missed")
        assert left.code == "dead-units.stays"
        assert "pads with zeros" in left.why


@pytest.mark.parametrize(
    ("padding", "stride", "groups"), [(1, 1, 1), ("same", 1, 2), ((0, 2), 2, 1), (0, 1, 1)]
)
def test_what_differs_at_the_border_may_become_a_map(
    rewritten: Rewritten, padding: int | str | tuple[int, int], stride: int, groups: int, kill: Kill
) -> None:
    second = nn.Conv2d(8, 6, 3, stride, padding, groups=groups, bias=False)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.Sigmoid(), second, nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    ).double()
    kill(model[0], [2, 6], 0.5)
    with torch.no_grad():
        second.weight[[1, 4]] = 0  # so that outputs of the layer with a map go as well
    x = torch.randn(2, 3, 7, 6).double()
    result = rewritten(model, x, "dead-units{border=true}", sizes="batch")
    assert shapes(result.program)["0.weight"] == (6, 3, 1, 1)
    assert shapes(result.program)["2.weight"][0] == 4
    assert ("2.border" in result.program.tensors()) == (padding != 0)
    assert not result.select(kind="missed")


def test_a_transposed_convolution_takes_up_nothing(rewritten: Rewritten, kill: Kill) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3)).double()
    kill(model[0], [2], 0.5)
    kill(model[0], [3], -0.5)
    result = rewritten(model, torch.randn(2, 3, 5, 5).double(), "dead-units")
    assert result.program.tensors()["2.weight"].shape[0] == 7
    assert "transposed" in result.select(kind="missed")[0].why


class Sums(nn.Module):
    """Two branches are added: a unit is constant where it is in both."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
        self.norm: nn.Module = nn.LayerNorm(6) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.a(x) * 2 + self.b(x)) + 1)
        return self.c(y)


def test_a_unit_of_two_branches_goes_where_both_are_constant(
    rewritten: Rewritten, kill: Kill
) -> None:
    model = Sums().double()
    kill(model.a, [0, 1, 2], 0.5)
    kill(model.b, [1, 2, 3], -0.2)
    result = rewritten(model, torch.randn(2, 4).double(), "dead-units")
    assert shapes(result.program)["c.weight"] == (3, 4)


def test_units_of_a_norm_stay(rewritten: Rewritten, kill: Kill) -> None:
    model = Sums(norm=True).double()
    kill(model.a, [1], 0.5)
    kill(model.b, [1], 0.5)
    assert not rewritten(model, torch.randn(2, 4).double(), "dead-units").changed


def test_a_product_with_0_is_0(rewritten: Rewritten, kill: Kill) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.sigmoid(self.a(x)) * self.b(x))

    model = Product().double()
    kill(model.b, [1], 0.0)
    kill(model.b, [3], 1.0)
    result = rewritten(model, torch.randn(2, 4).double(), "dead-units")
    assert shapes(result.program)["c.weight"] == (3, 5)


def test_constants_are_seen_through_shapes_and_pools(rewritten: Rewritten, kill: Kill) -> None:
    class Shapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1), nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            a = F.avg_pool2d(self.a(x), 2).permute(0, 2, 3, 1)
            b = F.adaptive_avg_pool2d(self.b(x), 2).transpose(1, 3).transpose(1, 2)
            return self.c(torch.cat([a, b], -1)).mean((1, 2))

    model = Shapes().double()
    kill(model.a, [1], 0.4)
    kill(model.b, [0, 2], 0.6)
    result = rewritten(model, torch.randn(2, 3, 4, 4).double(), "dead-units")
    assert shapes(result.program)["c.weight"] == (3, 6)


def test_averages_over_padding_keep_only_zeros(rewritten: Rewritten, kill: Kill) -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.avg_pool2d(self.a(x), 3, 1, 1))

    model = Pool().double()
    kill(model.a, [1], 0.4)
    kill(model.a, [2], 0.0)
    result = rewritten(model, torch.randn(2, 3, 4, 4).double(), "dead-units")
    assert shapes(result.program)["c.weight"][1] == 3


def test_one_unit_of_a_dead_layer_stays(rewritten: Rewritten, kill: Kill) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    kill(model[0], list(range(6)), 0.5)
    program = fp.capture(model.eval(), torch.randn(2, 4).double())
    result = run_pipeline(program, "dead-units")
    assert shapes(result.program)["2.weight"] == (3, 1)
    assert "dead-units.last" in {r.code for r in result.remarks}
    x = torch.randn(5, 4).double()
    torch.testing.assert_close(result.program(x), program(x))
    assert run_pipeline(result.program, "dead-units").program is result.program


def test_a_shared_bias_takes_up_nothing(rewritten: Rewritten, kill: Kill) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)
            self.c = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.c(torch.relu(self.a(x))), self.c(torch.relu(self.b(x)))

    model = Twice().double()
    kill(model.a, [1], 0.5)
    kill(model.b, [1], 0.7)
    result = rewritten(model, torch.randn(2, 4).double(), "dead-units")
    assert not result.changed
    assert "read 2 times" in result.select(kind="missed")[0].why


def test_train_mode_is_left_alone(rewritten: Rewritten, lenet: nn.Sequential, kill: Kill) -> None:
    model = lenet.double()
    kill(model[4], [0], 0.0)
    result = rewritten(model, X, "dead-units", train=True)
    assert [r.code for r in result.remarks] == ["dead-units.train-mode"]


def test_one_rewrite_is_one_group(lenet: nn.Sequential, kill: Kill) -> None:
    model = lenet.double()
    for at in (1, 4, 8):
        kill(model[at], [0], 0.2)
    program = fp.capture(model.eval(), X)
    result = run_pipeline(program, "dead-units", limit=1)
    assert result.steps[0].rewrites == 1
    torch.testing.assert_close(result.program(X), program(X))


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_stay_what_they_are(
    rewritten: Rewritten, seed: int, lenet: nn.Sequential, kill: Kill
) -> None:
    torch.manual_seed(seed)
    model = lenet.double()
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and layer is not model[10]:
            rows = torch.nonzero(torch.rand(len(layer.weight)) < 0.4).flatten().tolist()[:-1]
            kill(layer, rows, float(torch.randn(())))
    rewritten(model, X, "dead-units")


def test_float32_is_held_to_float32(lenet: nn.Sequential, kill: Kill) -> None:
    model = lenet
    kill(model[4], [0, 2], 0.3)
    program = fp.capture(model.eval(), X.float())
    result = run_pipeline(program, "dead-units")
    assert all(c.ok for c in result.steps[0].checks)
    torch.testing.assert_close(result.program(X.float()), program(X.float()))
