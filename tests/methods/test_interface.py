"""What holds of every method alike: empty epochs, failed steps, states, going on, the network for use."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.observe import observers
from fxprune.testing.training import (
    ConvNet,
    assert_same,
    captured,
    loss_of,
    make_batches,
    make_model,
)
from fxprune.training import Shrinker, TrainingError
from fxprune_passes.methods import BernoulliLayers, ComplexityAware, EntropyGuided, NeuronImportance
from fxprune_passes.methods.method import Method

Make = Callable[..., Any]
METHODS: dict[str, Make] = {
    "bernoulli": lambda s, **o: BernoulliLayers(s, 1000, -10.0, **{"rate": 0.05, **o}),
    "complexity": lambda s, **o: ComplexityAware(
        s, **{"nu": 0.5, "alpha": 0.5, "beta": 0.5, "rate": 0.05, **o}
    ),
    "importance": lambda s, **o: NeuronImportance(s, 0.2, 0.5, **{"warmup": 0, **o}),
    "entropy": lambda s, **o: EntropyGuided(s, **{"zeta": 0.3, **o}),
}
each = pytest.mark.parametrize("name", METHODS)


def sgd(program: Program) -> Shrinker:
    optimizer = torch.optim.SGD(program.module.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)
    return Shrinker(program, optimizer)


def adamw(program: Program) -> Shrinker:
    return Shrinker(program, torch.optim.AdamW(program.module.parameters(), 0.01))


def start(name: str, **options: Any) -> Any:
    return METHODS[name](sgd(captured()), verify=False, **options)


def tensors(program: Program) -> dict[str, torch.Tensor]:
    return {n: t.detach() for n, t in program.tensors().items()}


def train(method: Method, batches: list[Any]) -> list[float]:
    return [method.step(loss_of(x, y)).item() for x, y in batches]


@each
def test_an_epoch_without_steps_changes_nothing(name: str) -> None:
    method = start(name)
    before = copy.deepcopy([method.state_dict(), method.numbers()])
    program = method.shrinker.program
    assert method.end_epoch() == []
    assert_same([method.state_dict(), method.numbers()], before)
    assert method.shrinker.program is program


@each
def test_a_step_that_fails_changes_nothing(name: str) -> None:
    method = start(name)
    (x, y), *_ = make_batches(ConvNet, 1)
    train(method, [(x, y)])

    def state() -> Any:
        counts = [dict(o.named_buffers()) for o in observers(method.shrinker.program).values()]
        frozen = [o.frozen for o in observers(method.shrinker.program).values()]
        return copy.deepcopy([dict(method.module.named_parameters()), counts, frozen, method.steps])

    before = state()
    with pytest.raises(TrainingError, match="the loss is nan"):
        method.step(lambda module: module(x).sum() * float("nan"))
    assert_same(state(), before)


@each
def test_a_state_of_something_else_is_refused(name: str) -> None:
    method = start(name)
    state = method.state_dict()
    for key, value in (("method", "Other"), ("network", {"head.weight": [3, 5]})):
        with pytest.raises(TrainingError, match=f"another {key}"):
            method.load_state_dict(state | {key: value})
    for wrong in ({}, state | {"more": 1}, {k: v for k, v in state.items() if k != "steps"}):
        with pytest.raises(TrainingError, match="another method"):
            method.load_state_dict(wrong)
    assert_same(method.state_dict(), state)


@each
def test_the_network_for_use(name: str) -> None:
    method = start(name)
    train(method, make_batches(ConvNet, 2))
    method.end_epoch()
    x = make_batches(ConvNet, 1)[0][0]
    before = tensors(method.shrinker.program)
    rounded = {"round_gates": True} if hasattr(method, "gates") else {}
    program, settled = method.finish_training(**rounded), method.settled().eval()
    assert not program.training
    assert method.module.training
    assert not observers(program)
    assert not any("gate" in n or "norm" in n or "bn" in n for n in program.tensors())
    torch.testing.assert_close(program(x), settled(x))
    assert_same(tensors(method.shrinker.program), before)


@each
def test_half_precision_weights(name: str) -> None:
    (x, y), *_ = make_batches(ConvNet, 1)
    half = x.bfloat16()
    shrinker = sgd(fp.capture(make_model(ConvNet).bfloat16(), half))
    method = METHODS[name](shrinker, verify=False)
    for _ in range(2):
        assert method.step(lambda module: cross_entropy(module(half).float(), y)).isfinite()
        method.end_epoch()
    assert method.module.get_parameter("head.weight").dtype == torch.bfloat16
    assert set(map(type, method.numbers().values())) <= {int, float}


def close_a_block(method: Any) -> None:
    method.gates["blocks.0.gate"].set(0.001)


def close_units(method: Any) -> None:
    method.gates["blocks.0.conv1.gate"].theta.data[1:4] = 0.001


@dataclass(frozen=True)
class Case:
    """A method, its options, what is done before its second epoch ends, and its optimizer."""

    name: str
    options: dict[str, Any]
    prepare: Callable[[Any], None] = lambda _: None
    shrinker: Callable[[Program], Shrinker] = sgd


STOPS = {"evaluate": lambda _: 1.0, "delta": 0.0}
CASES = [
    *(
        Case("bernoulli", {"estimator": e, "seed": 3, "pick": "cyclic"}, close_a_block)
        for e in ("two-pass", "score", "first-order", "trapezoid")
    ),
    Case("complexity", {"refresh": 4, "seed": 3}, close_units),
    Case("bernoulli", {"rate": "auto", "epochs": 4, "start_after": 1, "settle_at": 4}),
    Case("complexity", {"rate": "auto", "epochs": 4, "settle_at": 3}),
    Case("complexity", {"nu": None, "keep": 0.8, "rate": 0.01, "settle_at": 4}),
    Case("importance", {"observe_every": 2}),
    Case("entropy", {"epochs_per_round": 2, **STOPS}, shrinker=adamw),
    Case("entropy", {"zeta": None, "move_padding": True, **STOPS}, shrinker=adamw),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_going_on_from_files_is_as_not_stopping(case: Case, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch."""
    batches = make_batches(ConvNet, 6)

    def start(program: Program) -> Any:
        return METHODS[case.name](case.shrinker(program), verify=False, **case.options)

    def go_on(method: Any) -> list[float]:
        losses = train(method, batches[3:])
        for _ in range(2):
            method.end_epoch()
            losses += train(method, batches[:3])
        return losses

    method = start(captured())
    for _ in range(2):
        train(method, batches[:2])
        case.prepare(method)
        method.end_epoch()
        case = Case(case.name, case.options, shrinker=case.shrinker)
    train(method, batches[:3])
    fp.save(method.shrinker.program, tmp_path / "program")
    torch.save([method.shrinker.state_dict(), method.state_dict()], tmp_path / "training.pt")
    losses = go_on(method)

    again = start(fp.load(tmp_path / "program"))
    training, own = torch.load(tmp_path / "training.pt")
    again.shrinker.load_state_dict(training)
    again.load_state_dict(own)
    assert go_on(again) == losses
    assert_same(tensors(again.shrinker.program), tensors(method.shrinker.program))
    assert_same(again.shrinker.state_dict(), method.shrinker.state_dict())
    assert again.numbers() == method.numbers()
    states = [one.state_dict() for one in (again, method)]
    good = [state.pop("good", {}) for state in states]  # of which the bytes need not be the same
    assert_same(*states)
    assert [bool(g) for g in good] == [case.name == "entropy"] * 2
    if case.name == "entropy":
        assert_same(tensors(again.good), tensors(method.good))
