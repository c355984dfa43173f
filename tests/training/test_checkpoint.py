"""Saved in the middle, loaded in a new process, and as if it had never stopped."""

from __future__ import annotations

import copy
import importlib.util
import random
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import fxprune as fp
from fxprune.graph.gate import gates
from fxprune.process.random_state import random_state, set_random_state
from fxprune.testing.training import (
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

SCRIPT = Path(__file__).with_name("resume_run.py")


def test_resuming_in_another_process_is_as_not_stopping(tmp_path: Path) -> None:
    program = capture(make_model(ConvNet), "insert-gates{kind=bernoulli}")
    held = weights(program)
    for gate in gates(program).values():
        with torch.no_grad():
            gate.theta.fill_(0.5)
    optimizer = torch.optim.AdamW(
        [{"params": held[::-2], "lr": 0.02}, {"params": held[-2::-2], "weight_decay": 0.3}], 0.01
    )
    ema = AveragedModel(program.module)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    shrinker = fp.training.Shrinker(program, optimizer, ema=ema, scheduler=schedule)
    train(shrinker.module, optimizer, make_batches(ConvNet, 3))
    ema.update_parameters(shrinker.module)
    shrinker.apply(fp.plan(shrinker.program, {"blocks.1.conv1.weight": (0, [0, 3])}))
    gates(shrinker.program)["blocks.0.gate"].set(0.0)
    shrinker.run("delete-gated")
    train(shrinker.module, optimizer, make_batches(ConvNet, 2, seed=3))
    schedule.step()

    torch.save(shrinker.state_dict(), tmp_path / "training.pt")
    fp.save(shrinker.program, tmp_path / "program")
    spec = importlib.util.spec_from_file_location("resume_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    resume = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(resume)
    resume.go_on(shrinker, tmp_path / "never_stopped.pt")
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    resumed, never = (
        torch.load(tmp_path / f"{n}.pt", weights_only=False) for n in ("resumed", "never_stopped")
    )
    assert_same(
        [resumed[0], dict(resumed[1]), resumed[2]["optimizer"]["state"], resumed[3]],
        [never[0], dict(never[1]), never[2]["optimizer"]["state"], never[3]],
    )
    assert_same(resumed[2]["names"], never[2]["names"])
    assert_same(dict(resumed[2]["ema"]), dict(never[2]["ema"]))


def test_generators_are_put_back() -> None:
    state = random_state()
    first = [torch.rand(2).tolist(), random.random(), np.random.rand(2).tolist()]  # noqa: NPY002
    set_random_state(state)
    again = [torch.rand(2).tolist(), random.random(), np.random.rand(2).tolist()]  # noqa: NPY002
    assert first == again


def test_a_state_of_another_network_changes_nothing() -> None:
    program, other = capture(make_model(Mlp)), capture(make_model(ConvNet))
    optimizer = torch.optim.SGD(weights(program), 0.1, momentum=0.9)
    train(program.module, optimizer, make_batches(Mlp, 2))
    shrinker = fp.training.Shrinker(program, optimizer)
    whole = shrinker.state_dict()
    averaged = fp.training.Shrinker(program, optimizer, ema={})
    strange = fp.training.Shrinker(other, torch.optim.SGD(weights(other), 0.1)).state_dict()
    before = snapshot(program, optimizer)
    with pytest.raises(fp.training.TrainingError, match="another network"):
        shrinker.load_state_dict(strange)
    with pytest.raises(fp.training.TrainingError, match="no part 'ema'"):
        averaged.load_state_dict(whole)
    assert_same(snapshot(program, optimizer), before)
    shrinker.apply(fp.plan(program, {"one.weight": (0, [1])}))
    before = snapshot(shrinker.program, optimizer)
    with pytest.raises(fp.training.TrainingError, match=r"has shape \[8, 5\]"):
        shrinker.load_state_dict(whole)
    assert_same(snapshot(shrinker.program, optimizer), before)


def whole() -> tuple[fp.training.Shrinker, torch.optim.Optimizer]:
    program = capture(make_model(Mlp))
    optimizer = torch.optim.AdamW(weights(program), 0.1)
    train(program.module, optimizer, make_batches(Mlp, 2))
    shrinker = fp.training.Shrinker(
        program,
        optimizer,
        ema={n: p.detach() + 1 for n, p in program.module.named_parameters()},
        scaler=torch.amp.GradScaler("cpu", init_scale=8.0),
        scheduler=torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3]),
    )
    return shrinker, optimizer


def ways(data: Any) -> list[tuple[Any, ...]]:
    """The way to each place of nested values, but for the many numbers of generators."""
    if isinstance(data, dict):
        return [(), *((k, *rest) for k, v in data.items() for rest in ways(v))]
    if isinstance(data, list) and len(data) < 20:
        return [(), *((i, *rest) for i, v in enumerate(data) for rest in ways(v))]
    return [()]


@pytest.mark.parametrize("bad", [None, "x", -1, [], {}, torch.ones(3)], ids=str)
def test_a_damaged_state_changes_all_or_nothing(bad: Any) -> None:
    shrinker, optimizer = whole()
    state = shrinker.state_dict()
    train(shrinker.module, optimizer, make_batches(Mlp, 1, seed=9))
    before = copy.deepcopy(shrinker.state_dict())
    for way in filter(None, ways(state)):
        spoiled = copy.deepcopy(state)
        place = reduce(lambda x, key: x[key], way[:-1], spoiled)
        place[way[-1]] = bad
        try:
            shrinker.load_state_dict(spoiled)
        except fp.training.TrainingError:
            assert_same(shrinker.state_dict(), before)
        else:
            shrinker.load_state_dict(before)


def test_a_state_is_read_without_any_pickle_of_code(tmp_path: Path) -> None:
    shrinker, _ = whole()
    state = shrinker.state_dict()
    torch.save(state, tmp_path / "training.pt")
    loaded = torch.load(tmp_path / "training.pt", weights_only=True)
    assert_same(loaded, state)
    shrinker.load_state_dict(loaded)


def test_scaler_and_averages_by_name_come_back() -> None:
    program = capture(make_model(Mlp))
    optimizer = torch.optim.SGD(weights(program), 0.1, momentum=0.9)
    ema = {n: p.detach() + 1 for n, p in program.module.named_parameters()}
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(1))
    shrinker = fp.training.Shrinker(program, optimizer, ema=ema, scaler=scaler)
    state = shrinker.state_dict()
    averages = dict(ema)
    ema.clear()
    scaler.update(2.0)
    shrinker.load_state_dict(state)
    assert_same(ema, averages)
    assert scaler.get_scale() == 8.0


def test_loss_scaling_goes_on_over_a_shrinking() -> None:
    program = capture(make_model(Mlp))
    optimizer = torch.optim.SGD(weights(program), 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    shrinker = fp.training.Shrinker(program, optimizer, scaler=scaler)
    x, _ = make_batches(Mlp, 1)[0]
    for positions in ([1, 2], [0], [3]):
        optimizer.zero_grad()
        scaler.scale(shrinker.module(x).float().sum()).backward()
        before = shrinker.module.get_parameter("head.bias").detach().clone()
        shrinker.apply(fp.plan(shrinker.program, {"one.weight": (0, positions)}))
        scaler.step(optimizer)  # with the gradients from before, cut
        scaler.update()
        assert not torch.equal(shrinker.module.get_parameter("head.bias"), before)
    assert scaler.get_scale() == 8.0
