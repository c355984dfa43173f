"""States of optimizers follow the shapes of their parameters, whatever the optimizer is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.testing.training import (
    Block,
    ConvNet,
    Mlp,
    assert_same,
    capture,
    make_batches,
    make_model,
    snapshot,
    train,
    weights,
)
from fxprune.training.optimizer_state import shrink_state

Tensor = torch.Tensor
PLAN = {"one.weight": (0, [1, 4, 5])}
EVERY: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adam-foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "adam-fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "adam-tensor-rate": lambda p: torch.optim.Adam(p, torch.tensor(0.01), foreach=False),
    "sgd-fused": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, fused=True),
    "adagrad-fused": lambda p: torch.optim.Adagrad(p, 0.01, fused=True),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True, momentum=0.5),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "muon": lambda p: torch.optim.Muon([x for x in p if x.dim() == 2], 0.01),
}


@pytest.mark.parametrize("name", list(EVERY))
def test_every_state_is_cut(name: str) -> None:
    program = capture(make_model(Mlp))
    optimizer = EVERY[name](weights(program))
    train(program.module, optimizer, make_batches(Mlp, 3))
    old = {n: (p, dict(optimizer.state[p])) for n, p in program.module.named_parameters()}
    shrinker = fp.training.Shrinker(program, optimizer)
    plan = fp.plan(program, PLAN)
    shrinker.apply(plan)
    for key, (before, entries) in old.items():
        after = shrinker.module.get_parameter(key)
        assert list(entries) == list(optimizer.state[after])
        for state, value in optimizer.state[after].items():
            expected = entries[state]
            if isinstance(expected, Tensor):
                for axis, positions in plan.kept.get(key, {}).items():
                    if expected.dim() == before.dim() and expected.shape[axis] > 1:
                        expected = expected[(slice(None),) * axis + (positions,)]
            assert_same(value, expected)
    assert before not in optimizer.state
    train(shrinker.module, optimizer, make_batches(Mlp, 2))


CUT = {0: np.array([0, 2]), 1: np.array([1, 2, 3])}


def test_adafactor_of_transformers_itself() -> None:
    make = pytest.importorskip("transformers.optimization").Adafactor
    program = capture(make_model(Mlp))
    optimizer = make(weights(program), lr=0.01, scale_parameter=False, relative_step=False)
    train(program.module, optimizer, make_batches(Mlp, 3))
    old = dict(optimizer.state[program.module.get_parameter("one.weight")])
    shrinker = fp.training.Shrinker(program, optimizer)
    plan = fp.plan(program, PLAN)
    shrinker.apply(plan)
    new = optimizer.state[shrinker.module.get_parameter("one.weight")]
    assert torch.equal(new["exp_avg_sq_row"], old["exp_avg_sq_row"][plan.kept["one.weight"][0]])
    assert torch.equal(new["exp_avg_sq_col"], old["exp_avg_sq_col"])
    train(shrinker.module, optimizer, make_batches(Mlp, 2))


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("any", (3, 4, 5), (2, 3, 5)),
        ("any", (1, 4, 5), (1, 3, 5)),
        ("any", (3, 1, 1), (2, 1, 1)),
        ("any", (3, 4), (2, 3)),
        ("any", (4,), (3,)),
        ("any", (5,), (5,)),
        ("any", (1,), (1,)),
        ("any", (), ()),
        ("exp_avg_sq_row", (3, 4), (2, 3)),
        ("exp_avg_sq_col", (3, 5), (2, 5)),
    ],
)
def test_shapes(key: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = shrink_state({key: torch.zeros(shape), "step": 3}, (3, 4, 5), CUT, "w")
    assert found[key].shape == expected
    assert found["step"] == 3


def test_names_tell_what_squares_do_not() -> None:
    state = {"exp_avg_sq_row": torch.arange(4), "exp_avg_sq_col": torch.arange(4)}
    found = shrink_state(state, (4, 4), {0: np.array([1, 3])}, "w")
    assert found["exp_avg_sq_row"].tolist() == [1, 3]
    assert found["exp_avg_sq_col"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (torch.zeros(4), "several of the parameter's axes"),
        (torch.zeros(7), "none of the parameter's axes"),
        ([torch.zeros(16)], "holds tensors"),
        ({"a": torch.zeros(16)}, "holds tensors"),
    ],
)
def test_what_cannot_be_followed_is_refused(value: Any, why: str) -> None:
    with pytest.raises(fp.training.TrainingError, match=why):
        shrink_state({"a": value}, (4, 4), {0: np.array([1, 3])}, "w")
    assert shrink_state({"a": value}, (4, 4), {}, "w") == {"a": value}


def test_lbfgs_is_refused() -> None:
    program = capture(make_model(Mlp))
    with pytest.raises(fp.training.TrainingError, match="LBFGS"):
        fp.training.Shrinker(program, torch.optim.LBFGS(weights(program)))


class Hoarder(torch.optim.SGD):
    """Keeps a list of its parameters."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, 0.1)
        self.flat = {"all": params}


def test_an_optimizer_with_parameters_of_its_own_is_refused() -> None:
    program = capture(make_model(Mlp))
    with pytest.raises(fp.training.TrainingError, match="`flat`"):
        fp.training.Shrinker(program, Hoarder(weights(program)))


class Strange(torch.optim.SGD):
    """Adds a state that lies along nothing."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["blocks"] = torch.zeros(7)
        return super().step(closure)


def test_a_failure_changes_nothing() -> None:
    program = capture(make_model(Mlp))
    optimizer = Strange(weights(program), 0.1, momentum=0.9)
    train(program.module, optimizer, make_batches(Mlp, 2))
    shrinker = fp.training.Shrinker(program, optimizer)
    before = snapshot(program, optimizer)
    with pytest.raises(fp.training.TrainingError, match=r"\[7\]"):
        shrinker.apply(fp.plan(program, PLAN))
    assert shrinker.program is program
    assert_same(snapshot(program, optimizer), before)


def test_groups_keep_their_order_options_and_names() -> None:
    program = capture(make_model(ConvNet), "insert-gates")
    named = [(n, p) for n, p in program.module.named_parameters() if p.requires_grad]
    stranger = nn.Parameter(torch.ones(2, dtype=torch.float64))
    groups = [
        {"params": [(n, p) for n, p in named if "blocks.0" in n], "lr": 0.1},
        {"params": [(n, p) for n, p in reversed(named) if "blocks.0" not in n], "lr": 0.2},
        {"params": [("stranger", stranger)], "lr": 0.3},
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    stranger.grad = torch.ones_like(stranger)
    train(program.module, optimizer, make_batches(ConvNet, 1))
    shrinker = fp.training.Shrinker(program, optimizer, scheduler=schedule)
    held, kept = optimizer.param_groups, optimizer.state
    program.module.get_submodule("blocks.0.gate").set(0.0)  # type: ignore[operator]
    change = shrinker.run("delete-gated")
    assert optimizer.param_groups is held
    assert optimizer.state is kept
    names = [n for n, _ in reversed(named) if "blocks.0" not in n]
    assert [len(g["params"]) for g in held] == [0, len(names), 1]
    assert held[1]["param_names"] == names
    assert all(
        p is shrinker.module.get_parameter(n) for n, p in zip(names, held[1]["params"], strict=True)
    )
    assert held[2]["params"] == [stranger]
    assert set(change.left) == {n for n, _ in named if "blocks.0" in n}
    schedule.step()
    assert [g["lr"] for g in held] == [0.05, 0.1, 0.15]
    train(shrinker.module, optimizer, make_batches(ConvNet, 2))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.two.weight = self.one.weight
        self.mid = nn.Linear(5, 6)
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(torch.relu(self.out(torch.relu(self.mid(self.one(x)))))))


def test_shared_parameters_stay_one() -> None:
    model = Tied().double().train()
    program = fp.capture(model, torch.randn(4, 5, dtype=torch.float64))
    optimizer = torch.optim.Adam(program.module.parameters())
    train(program.module, optimizer, make_batches(Mlp, 2))
    shrinker = fp.training.Shrinker(program, optimizer)
    shrinker.apply(fp.plan(program, {"mid.weight": (0, [0, 2])}))
    assert shrinker.module.get_parameter("one.weight") is shrinker.module.get_parameter(
        "two.weight"
    )
    held = optimizer.param_groups[0]["params"]
    assert len(held) == len(set(held)) == len(list(shrinker.module.parameters()))
    train(shrinker.module, optimizer, make_batches(Mlp, 2))


def test_channels_last_states_stay_so() -> None:
    model = Block(4).double().to(memory_format=torch.channels_last)
    program = fp.capture(model, torch.randn(2, 4, 6, 6, dtype=torch.float64))
    optimizer = torch.optim.SGD(program.module.parameters(), 0.1, momentum=0.9)
    program.module(torch.randn(2, 4, 6, 6, dtype=torch.float64)).sum().backward()
    optimizer.step()
    shrinker = fp.training.Shrinker(program, optimizer)
    shrinker.apply(fp.plan(program, {"conv1.weight": (0, [1])}))
    weight = shrinker.module.get_parameter("conv1.weight")
    for tensor in (weight, optimizer.state[weight]["momentum_buffer"]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
