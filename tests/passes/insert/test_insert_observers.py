"""Tests of insert-observers and remove-observers: where observers go, and that nothing else minds them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.observe import Contribution, OnFraction, observer_nodes, observers
from fxprune.pipeline import run_pipeline
from fxprune.structure.activations import find_activations
from fxprune.structure.blocks import find_blocks
from fxprune.structure.linear import find_linear_regions
from fxprune.testing.networks import check_network


class Spelled(nn.Module):
    """Activations spelled out as several calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(x * torch.sigmoid(x))
        x = 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3.0))))
        return torch.tanh(self.c(x)) * self.c(x)


class Attention(nn.Module):
    """Squeeze and excitation: what the sigmoid makes is no function of what it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class Moved(nn.Module):
    """The channels of a convolution end up last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x).permute(0, 2, 3, 1))
        x = nn.functional.gelu(self.fc(x).transpose(1, 2))
        return self.head(x.mean((1, 2)))


class Gated(nn.Module):
    """The product of two branches, one behind an activation; then the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return self.head(torch.relu(x).mean(1))


def observed(program: Program, text: str) -> Program:
    return run_pipeline(program, text).program


def axes_of(program: Program) -> dict[str, object]:
    return {path: nodes[0].args[1] for path, nodes in observer_nodes(program).items()}


def test_activations_spelled_out_are_found_whole() -> None:
    program = fp.capture(Spelled().eval(), torch.randn(2, 4))
    found = list(find_activations(program))
    assert [(a.name, str(a.source)) for a in found] == [
        ("sigmoid", "linear"),
        ("tanh", "linear_1"),
        ("tanh", "linear_2"),
    ]
    assert [len(a.nodes) for a in found] == [2, 8, 1]
    after = observed(program, "insert-observers")
    x = torch.randn(5, 4)
    assert torch.equal(after(x), program(x))
    assert [int(o.seen) for o in observers(after).values()] == [5, 5, 5]


def test_an_excitation_is_an_activation_of_its_own() -> None:
    program = fp.capture(Attention().eval(), torch.randn(2, 3, 6, 6))
    assert [len(a.nodes) for a in find_activations(program)] == [1]


def test_the_axis_is_that_of_the_units_wherever_it_went() -> None:
    program = fp.capture(Moved().eval(), torch.randn(2, 3, 5, 5))
    after = observed(program, "insert-observers")
    assert axes_of(after) == {"observer": 3, "observer2": 3}
    after(torch.randn(2, 3, 5, 5))
    assert [int(o.seen) for o in observers(after).values()] == [50, 50]


@pytest.mark.parametrize(
    ("make", "shape", "axis"),
    [
        (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9), 1),
        (lambda: nn.Conv3d(4, 6, 3), (2, 4, 5, 5, 5), 1),
        (lambda: nn.ConvTranspose2d(4, 6, 3), (2, 4, 5, 5), 1),
        (lambda: nn.Linear(4, 6), (2, 4), 1),
        (lambda: nn.Linear(4, 6), (2, 3, 5, 4), 3),
    ],
)
def test_the_axis_is_known_where_units_are_frozen(
    make: Callable[[], nn.Module], shape: tuple[int, ...], axis: int
) -> None:
    program = fp.capture(nn.Sequential(make(), nn.ReLU()).eval(), torch.randn(shape))
    assert axes_of(observed(program, "insert-observers")) == {"1.observer": axis}


def test_no_layer_no_axis() -> None:
    program = fp.capture(nn.ReLU(), torch.randn(2, 3))
    result = run_pipeline(program, "insert-observers")
    assert result.program is program
    assert [r.code for r in result.remarks] == ["insert-observers.no-axis"]


def test_where_and_a_second_time(program: Program) -> None:
    first = run_pipeline(program, "insert-observers{where=one.*}")
    assert list(observers(first.program)) == ["one.1.observer"]
    again = run_pipeline(first.program, "insert-observers{stat=entropy where=one.*}")
    assert again.program is first.program
    assert [r.code for r in again.remarks] == ["insert-observers.observed"]
    assert list(observers(observed(first.program, "insert-observers{stat=mean where=one.*}"))) == [
        "one.1.observer",
        "one.1.observer2",
    ]
    assert run_pipeline(program, "insert-observers", limit=2).steps[0].rewrites == 2


def test_contributions_are_those_of_the_layer_that_reads(program: Program) -> None:
    after = observed(program, "insert-observers{stat=contribution signed=true}")
    found = observers(after)
    assert list(found) == [
        "one.0.observer", "one.2.observer", "two.0.observer", "two.3.observer", "head.observer",
    ]  # fmt: skip
    assert all(isinstance(o, Contribution) and o.signed for o in found.values())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(after(x), program(x))
    assert int(found["two.3.observer"].seen) == 2 * 64 * 16
    shares = observers(observed(program, "insert-observers{stat=contribution}"))
    assert set(shares) == set(found)


def test_transposed_convolutions_have_no_contributions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2))
    program = fp.capture(model.eval(), torch.randn(1, 3, 4, 4))
    result = run_pipeline(program, "insert-observers{stat=contribution}")
    assert [r.code for r in result.remarks] == ["insert-observers.no-form"]


def test_contributions_of_products_and_means_of_activations() -> None:
    program = fp.capture(Gated().eval(), torch.randn(2, 3, 4))
    found = observers(observed(program, "insert-observers{stat=contribution}"))
    assert [(p, o.get_buffer("total").numel()) for p, o in found.items()] == [
        ("down.observer", 6),
        ("head.observer", 4),
    ]


def test_depthwise_convolutions_share_nothing() -> None:
    layers = [nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    result = run_pipeline(
        fp.capture(model, torch.randn(1, 3, 4, 4)), "insert-observers{stat=contribution}"
    )
    assert list(observers(result.program)) == ["4.observer"]
    (remark,) = result.select("insert-observers", "missed")
    assert "nothing to share" in remark.why


def test_outputs_of_the_last_activation_feed_no_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Sigmoid())
    program = fp.capture(model.eval(), torch.randn(1, 3))
    assert list(observers(observed(program, "insert-observers{stat=max}"))) == ["1.observer"]
    assert len(observers(observed(program, "insert-observers"))) == 2


STATS = ("on-fraction", "mean", "max", "covariance", "contribution")


@pytest.mark.parametrize("stat", STATS)
def test_other_analyses_see_through(program: Program, stat: str) -> None:
    after = observed(program, f"insert-observers{{stat={stat}}}")
    assert [(b.path, b.parameters) for b in find_blocks(after)] == [
        (b.path, b.parameters) for b in find_blocks(program)
    ]
    assert [len(r.layers) for r in find_linear_regions(after)] == [
        len(r.layers) for r in find_linear_regions(program)
    ]
    groups = {g.name: len(g) for g in fp.groups(program)}
    assert {g.name: len(g) for g in fp.groups(after)} == groups


@pytest.mark.parametrize("stat", STATS)
def test_shrinking_cuts_the_counters_with_the_axis(program: Program, stat: str) -> None:
    after = observed(program, f"insert-observers{{stat={stat}}}")
    after(torch.randn(2, 3, 8, 8))
    small = fp.shrink(after, fp.plan(after, {"one.0.weight": (0, [0, 7])}))
    name = "one.2.observer" if stat == "contribution" else "one.1.observer"
    old, new = observers(after)[name], observers(small)[name]
    kept = torch.tensor([i for i in range(24) if i not in (0, 7)])
    for key, buffer in old.named_buffers():
        for axis in range(buffer.dim()):
            buffer = buffer.index_select(axis, kept)
        assert torch.equal(new.get_buffer(key), buffer)
    small(torch.randn(2, 3, 8, 8))
    assert int(new.seen) == 2 * int(old.seen)


@pytest.mark.parametrize("stat", STATS)
@pytest.mark.parametrize("scope", ["block", "unit", "layer"])
def test_gates_go_where_they_would_go_without(program: Program, scope: str, stat: str) -> None:
    gated = f"insert-gates{{scope={scope}}}"
    plain = run_pipeline(program, gated)
    after = run_pipeline(program, f"insert-observers{{stat={stat}}} | {gated}")
    count = [r.what for r in plain.select("insert-gates", "applied")]
    assert [r.what for r in after.select("insert-gates", "applied")] == count


def test_branches_go_with_their_observers(program: Program) -> None:
    text = "insert-observers | insert-gates | set-gates{value=0} | delete-gated | dead-code"
    result = run_pipeline(program, text)
    assert list(observers(result.program)) == ["stem.2.observer", "observer", "observer2"]


def test_removed_again_the_program_is_what_it_was(program: Program) -> None:
    after = observed(program, "insert-observers | insert-observers{stat=mean}")
    some = observed(after, "remove-observers{stat=mean}")
    assert all(isinstance(o, OnFraction) for o in observers(some).values())
    few = observed(after, "remove-observers{where=one.*}")
    assert len(observers(after)) - len(observers(few)) == 2
    back = run_pipeline(after, "remove-observers")
    assert str(back.program.graph) == str(program.graph)
    assert set(back.program.tensors()) == set(program.tensors())
    assert run_pipeline(back.program, "remove-observers").program is back.program


def test_flattened_maps_and_random_removals() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(1, 6, 3), nn.ReLU()
            self.one, self.two = nn.Linear(6 * 4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.relu(self.one(self.act(self.conv(x)).flatten(1))))

    program = check_network(Flat().eval(), (torch.randn(2, 1, 4, 4),))
    after = observed(program, "insert-observers{stat=contribution}")
    small = fp.shrink(after, fp.plan(after, {"conv.weight": (0, [2])}))
    assert observers(small)["one.observer"].get_buffer("total").shape == (20,)
    small(torch.randn(2, 1, 4, 4))
