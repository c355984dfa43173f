"""What goes along with the parameters, what stays, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxprune as fp
from fxprune.graph.gate import gates
from fxprune.testing.training import (
    OPTIMIZERS,
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

PLAN = {"one.weight": (0, [1, 4, 5])}
AVERAGE = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
KEPT = [0, 2, 3, 6, 7]


def started(kind: type[nn.Module] = Mlp, text: str = "") -> tuple[Any, torch.optim.Optimizer]:
    program = capture(make_model(kind), text)
    optimizer = OPTIMIZERS["adamw"](weights(program))
    train(program.module, optimizer, make_batches(kind, 2))
    return program, optimizer


def test_gradients_hooks_attributes_and_flags_go_along() -> None:
    program, optimizer = started()
    old = program.module.get_parameter("one.weight")
    bias = program.module.get_parameter("two.bias").requires_grad_(False)
    old.tag = "mine"
    calls: list[str] = []
    handle = old.register_hook(lambda g: calls.append("hook"))
    old.register_post_accumulate_grad_hook(lambda p: calls.append("post"))
    program.module.register_forward_hook(lambda *_: calls.append("forward"))
    gradient = old.grad
    assert gradient is not None
    shrinker = fp.training.Shrinker(program, optimizer)
    change = shrinker.apply(fp.plan(program, PLAN))
    assert str(change) == "parameters 139 -> 97; 3 units removed"
    new = shrinker.module.get_parameter("one.weight")
    assert new.grad is not None
    assert torch.equal(new.grad, gradient[KEPT])
    assert old.grad is None
    assert new.tag == "mine"  # type: ignore[attr-defined]
    assert not shrinker.module.get_parameter("two.bias").requires_grad
    assert bias is not shrinker.module.get_parameter("two.bias")
    train(shrinker.module, optimizer, make_batches(Mlp, 1))
    assert calls == ["forward", "hook", "post"]
    handle.remove()
    calls.clear()
    train(shrinker.module, optimizer, make_batches(Mlp, 1))
    assert calls == ["forward", "post"]


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_model_goes_along(use_buffers: bool) -> None:
    program, optimizer = started(ConvNet, "insert-gates")
    ema = AveragedModel(program.module, multi_avg_fn=AVERAGE, use_buffers=use_buffers).eval()
    for batch in make_batches(ConvNet, 3):
        train(program.module, optimizer, [batch])
        ema.update_parameters(program.module)
    old = {n: t.clone() for n, t in ema.module.state_dict().items()}
    gates(program)["blocks.0.gate"].set(0.0)
    shrinker = fp.training.Shrinker(program, optimizer, ema=ema)
    shrinker.run("delete-gated")
    plan = fp.plan(shrinker.program, {"blocks.1.conv1.weight": (0, [0, 3])})
    shrinker.apply(plan)
    kept = plan.kept["blocks.1.conv1.weight"][0]
    found = ema.module.state_dict()
    assert list(found) == list(shrinker.module.state_dict())
    assert torch.equal(found["blocks.1.conv1.weight"], old["blocks.1.conv1.weight"][kept])
    assert torch.equal(found["blocks.1.conv2.weight"], old["blocks.1.conv2.weight"][:, kept])
    assert torch.equal(found["blocks.1.bn1.running_var"], old["blocks.1.bn1.running_var"][kept])
    assert torch.equal(found["stem.weight"], old["stem.weight"])
    assert not ema.module.training
    assert "gate" not in str(ema.module.code)
    train(shrinker.module, optimizer, make_batches(ConvNet, 1))
    ema.update_parameters(shrinker.module)
    ema(make_batches(ConvNet, 1)[0][0])


def test_averages_by_name_go_along() -> None:
    program, optimizer = started(ConvNet, "insert-gates")
    ema = {n: p.detach().clone() for n, p in program.module.named_parameters() if p.requires_grad}
    ema["other"] = torch.ones(3)
    old = dict(ema)
    gates(program)["blocks.0.gate"].set(0.0)
    shrinker = fp.training.Shrinker(program, optimizer, ema=ema)
    shrinker.run("delete-gated")
    shrinker.apply(fp.plan(shrinker.program, {"blocks.1.conv1.weight": (0, [0, 3])}))
    assert list(ema) == [n for n in old if not n.startswith("blocks.0")]
    assert ema["blocks.1.conv1.weight"].shape == (4, 4, 3, 3)
    assert ema["other"] is old["other"]


def test_averages_of_another_network_are_refused() -> None:
    program, optimizer = started()
    ema = {"one.weight": torch.zeros(3, 3)}
    another = AveragedModel(nn.Linear(2, 2))
    shrinker = fp.training.Shrinker(program, optimizer, ema=ema)
    before = snapshot(program, optimizer)
    with pytest.raises(fp.training.TrainingError, match="average has shape"):
        shrinker.apply(fp.plan(program, PLAN))
    assert_same(snapshot(program, optimizer), before)
    shrinker = fp.training.Shrinker(program, optimizer, ema=another)
    with pytest.raises(fp.training.TrainingError, match="another network"):
        shrinker.apply(fp.plan(program, PLAN))
    assert_same(snapshot(program, optimizer), before)


def test_a_model_is_captured_with_its_parameters() -> None:
    model = make_model(Mlp)
    names = list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    shrinker = fp.training.Shrinker(model, optimizer, args=make_batches(Mlp, 1)[0][0])
    assert shrinker.module.get_parameter("one.weight") is model.get_parameter("one.weight")
    train(shrinker.module, optimizer, make_batches(Mlp, 2))
    shrinker.apply(fp.plan(shrinker.program, PLAN))
    assert list(shrinker.module.state_dict()) == names
    train(shrinker.module, optimizer, make_batches(Mlp, 2))
    shrinker.module.eval()
    shrinker.module(make_batches(Mlp, 1)[0][0])
    assert model.get_parameter("one.weight").shape == (8, 5)


def test_a_step_with_gradients_of_the_network_before_is_refused() -> None:
    program, optimizer = started()
    module = program.module
    shrinker = fp.training.Shrinker(program, optimizer)
    shrinker.apply(fp.plan(program, PLAN))
    with pytest.raises(fp.training.TrainingError, match="before the last shrinking"):
        train(module, optimizer, make_batches(Mlp, 1))
    module.zero_grad()
    train(shrinker.module, optimizer, make_batches(Mlp, 1))


def test_an_optimizer_of_another_network_is_refused() -> None:
    program = capture(make_model(Mlp))
    with pytest.raises(fp.training.TrainingError, match="no parameter of the network"):
        fp.training.Shrinker(program, torch.optim.SGD(make_model(Mlp).parameters(), 0.1))


@pytest.mark.parametrize("rewritten", ["refuse", "reset"])
def test_folds_are_refused_or_start_states_anew(rewritten: Any) -> None:
    model = make_model(ConvNet).eval()
    program = capture(model)
    optimizer = torch.optim.Adam(
        [
            {"params": [p for p in weights(program) if p.dim() > 1]},
            {"params": [p for p in weights(program) if p.dim() == 1]},
        ]
    )
    train(program.module, optimizer, make_batches(ConvNet, 2))
    shrinker = fp.training.Shrinker(program, optimizer)
    if rewritten == "refuse":
        before = snapshot(program, optimizer)
        with pytest.raises(fp.training.TrainingError, match="recomputed"):
            shrinker.run("fold-batchnorm")
        assert_same(snapshot(program, optimizer), before)
        return
    change = shrinker.run("fold-batchnorm", rewritten="reset")
    assert "stem.weight" in change.restarted
    assert "blocks.0.conv1.bias" in change.joined
    bias, weight = (
        shrinker.module.get_parameter(f"blocks.0.conv1.{n}") for n in ("bias", "weight")
    )
    first = optimizer.param_groups[0]["params"]
    assert any(p is bias for p in first)
    assert weight not in optimizer.state
    train(shrinker.module, optimizer, make_batches(ConvNet, 2))
    assert weight in optimizer.state


def test_gates_that_a_pass_inserts_stay_outside_of_the_optimizer() -> None:
    program, optimizer = started(ConvNet)
    shrinker = fp.training.Shrinker(program, optimizer)
    held = [p for g in optimizer.param_groups for p in g["params"]]
    change = shrinker.run("insert-gates")
    assert change.changed
    assert len(gates(shrinker.program)) == 2
    assert [p for g in optimizer.param_groups for p in g["params"]] == held


def test_running_passes_draws_no_random_numbers() -> None:
    program, optimizer = started(ConvNet, "insert-gates")
    gates(program)["blocks.0.gate"].set(0.0)
    shrinker = fp.training.Shrinker(program, optimizer)
    state = torch.get_rng_state()
    shrinker.run("delete-gated")
    shrinker.apply(fp.plan(shrinker.program, {"blocks.1.conv1.weight": (0, [0])}), verify=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failing_pipeline_changes_nothing() -> None:
    program, optimizer = started()
    other = fp.plan(capture(make_model(ConvNet)), {"stem.weight": (0, [0])})
    shrinker = fp.training.Shrinker(program, optimizer)
    before = snapshot(program, optimizer)
    with pytest.raises(fp.FxpruneError):
        shrinker.run([lambda gm: 1 / 0])
    with pytest.raises(fp.FxpruneError):
        shrinker.apply(other)
    assert_same(snapshot(program, optimizer), before)


def test_nothing_to_do_is_no_change() -> None:
    program, optimizer = started()
    shrinker = fp.training.Shrinker(program, optimizer)
    change = shrinker.run("delete-gated")
    assert not change.changed
    nodes = len(program.graph.nodes)
    assert str(change) == f"parameters 139 -> 139; nodes {nodes} -> {nodes}"
    assert shrinker.program is program


@pytest.mark.parametrize("training", [True, False])
def test_norms_of_a_deleted_branch_leave_nothing_behind(training: bool) -> None:
    program, optimizer = started(ConvNet, "insert-gates")
    program.train(training)
    gates(program)["blocks.0.gate"].set(0.0)
    shrinker = fp.training.Shrinker(program, optimizer)
    change = shrinker.run("delete-gated")
    assert str(change).endswith("; 4 layers deleted; 6 parameters left the optimizer")
    assert not [n for n in shrinker.module.state_dict() if n.startswith("blocks.0")]
    assert "blocks.1.bn1.num_batches_tracked" in shrinker.module.state_dict()
    assert shrinker.program.training is training
    steps = int(shrinker.module.get_buffer("blocks.1.bn1.num_batches_tracked"))
    shrinker.module.train()
    train(shrinker.module, optimizer, make_batches(ConvNet, 1))
    assert int(shrinker.module.get_buffer("blocks.1.bn1.num_batches_tracked")) == steps + 1


def test_a_sparse_gradient_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(7, 6, sparse=True), nn.Linear(6, 3)).double()
    program = fp.capture(model, torch.zeros(2, 3, dtype=torch.long))
    optimizer = torch.optim.SparseAdam(program.module.parameters())
    program.module(torch.zeros(2, 3, dtype=torch.long)).sum().backward()
    shrinker = fp.training.Shrinker(program, optimizer)
    plan = fp.plan(program, {"0.weight": (1, [2])})
    with pytest.raises(fp.training.TrainingError, match="gradient of layout"):
        shrinker.apply(plan)
    program.module.zero_grad()
    shrinker.apply(plan)


def test_gates_in_the_optimizer_are_cut_and_leave() -> None:
    program = capture(make_model(ConvNet), "insert-gates{scope=unit where=blocks.*}")
    optimizer = torch.optim.Adam(program.module.requires_grad_().parameters(), 0.01)
    train(program.module, optimizer, make_batches(ConvNet, 2))
    path, gate = next(iter(gates(program).items()))
    state = optimizer.state[gate.theta]["exp_avg"].clone()
    shrinker = fp.training.Shrinker(program, optimizer)
    shrinker.apply(fp.plan(program, {f"{path}.theta": (0, [1, 2])}))
    theta = gates(shrinker.program)[path].theta
    assert torch.equal(optimizer.state[theta]["exp_avg"], state[[0, 3, 4, 5]])
    for gate in gates(shrinker.program).values():
        gate.set(1.0)
    change = shrinker.run("delete-gated")
    assert set(change.left) == {n for n in change.dropped if n.endswith("theta")}
    assert set(optimizer.state) == set(optimizer.param_groups[0]["params"])
    assert set(shrinker.module.parameters()) == set(optimizer.param_groups[0]["params"])


def test_weights_of_new_shortcuts_join_the_group_of_the_layer_they_lead_around() -> None:
    program = capture(make_model(Mlp))
    optimizer = torch.optim.SGD(
        [{"params": [program.module.get_parameter(f"{n}.weight")]} for n in ("one", "two", "head")],
        0.05,
    )
    shrinker = fp.training.Shrinker(program, optimizer)
    assert shrinker.run("insert-skips").joined == ("two.skip.weight",)
    added = shrinker.module.get_parameter("two.skip.weight")
    assert any(p is added for p in optimizer.param_groups[1]["params"])
