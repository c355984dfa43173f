"""Going back to an earlier network: its weights, its parameters in the optimizer, its averages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.training import Shrinker, TrainingError
from fxprune.training.modules import named_tensors

X = torch.randn(6, 5)


def make(ema: Any = None) -> Shrinker:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    program = fp.capture(model.train(), X)
    tree = program.module
    weights = [p for n, p in tree.named_parameters() if "weight" in n]
    biases = [p for n, p in tree.named_parameters() if "bias" in n]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    averages = AveragedModel(tree) if ema == "model" else None
    if ema == "mapping":
        averages = {n: p.detach().clone() for n, p in tree.named_parameters()}  # type: ignore[assignment]
    return Shrinker(program, torch.optim.AdamW(groups, lr=0.1), ema=averages)


def train(shrinker: Shrinker, steps: int = 3) -> None:
    for _ in range(steps):
        shrinker.optimizer.zero_grad()
        shrinker.module(X).square().sum().backward()
        shrinker.optimizer.step()


def cut(shrinker: Shrinker) -> None:
    """Removes two units."""
    shrinker.apply(fp.plan(shrinker.program, {"2.weight": (0, [1, 4])}))


def weights(program: Program) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in program.tensors().items()}


def groups(shrinker: Shrinker) -> list[set[str]]:
    name_of = {p: n for n, p in shrinker.module.named_parameters()}
    return [{name_of[p] for p in g["params"]} for g in shrinker.optimizer.param_groups]


def test_weights_groups_and_rates() -> None:
    shrinker = make()
    train(shrinker)
    point, before, members = shrinker.point(), weights(shrinker.program), groups(shrinker)
    train(shrinker)
    cut(shrinker)
    for group in shrinker.optimizer.param_groups:
        group["lr"] = 0.03
    stale = shrinker.module
    change = shrinker.go_back(point)
    torch.testing.assert_close(weights(shrinker.program), before, rtol=0, atol=0)
    assert groups(shrinker) == members
    assert [g["lr"] for g in shrinker.optimizer.param_groups] == [0.03, 0.03]
    assert [g["weight_decay"] for g in shrinker.optimizer.param_groups] == [0.01, 0.0]
    assert not shrinker.optimizer.state
    assert change.changed
    assert set(change.restarted) == set.union(*members)
    train(shrinker)
    assert not torch.equal(shrinker.module.get_parameter("4.weight"), before["4.weight"])
    stale(X).sum().backward()
    with pytest.raises(TrainingError, match="before the last shrinking"):
        shrinker.optimizer.step()


def test_layers_that_had_gone_are_trained_again() -> None:
    shrinker = make()
    point, members = shrinker.point(), groups(shrinker)

    def shorten(module: Any) -> Any:
        relu = [n for n in module.graph.nodes if "relu" in str(n.target)]
        relu[1].replace_all_uses_with(relu[1].args[0])
        module.graph.erase_node(relu[1])
        return module

    shrinker.run([shorten], verify=False)
    shrinker.run("fuse-linear{when=always}", rewritten="reset")
    assert groups(shrinker) != members
    change = shrinker.go_back(point)
    assert groups(shrinker) == members
    assert change.joined
    train(shrinker)
    assert len(shrinker.optimizer.state) == 6


@pytest.mark.parametrize("kind", ["model", "mapping"])
def test_averages_start_anew(kind: str) -> None:
    shrinker = make(kind)
    point, before = shrinker.point(), weights(shrinker.program)
    train(shrinker)
    cut(shrinker)
    shrinker.go_back(point)
    ema: Any = shrinker.ema
    found = dict(named_tensors(ema.module)) if kind == "model" else ema
    torch.testing.assert_close({n: t.detach() for n, t in found.items()}, before, rtol=0, atol=0)
    train(shrinker)
    assert torch.equal(found["4.bias"], before["4.bias"])


def test_other_parameters_of_the_optimizer_keep_their_state() -> None:
    shrinker = make()
    other = nn.Parameter(torch.ones(3))
    shrinker.optimizer.param_groups[0]["params"].append(other)
    other.grad = torch.ones(3)
    train(shrinker, 1)
    kept = copy.deepcopy(shrinker.optimizer.state[other])
    shrinker.go_back(shrinker.point())
    assert shrinker.optimizer.param_groups[0]["params"][-1] is other
    assert list(shrinker.optimizer.state) == [other]
    torch.testing.assert_close(dict(shrinker.optimizer.state[other]), dict(kept))


def test_another_number_of_groups_is_refused() -> None:
    shrinker = make()
    point, program = shrinker.point(), shrinker.program
    shrinker.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    with pytest.raises(TrainingError, match="has 3 groups and had 2"):
        shrinker.go_back(point)
    assert shrinker.program is program
