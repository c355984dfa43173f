"""Complexity-aware training: prices, what it removes, on which networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune.errors import OptionError
from fxprune.program import Program
from fxprune.testing.training import ConvNet, Mlp, Transformer, assert_same, make_batches
from fxprune_passes.methods import ComplexityAware
from fxprune_passes.methods.method import Loss

Tensor = torch.Tensor


@cache
def captured(kind: Callable[[], nn.Module]) -> Program:
    """Captured once; copied for each use."""
    torch.manual_seed(0)
    return fp.capture(kind().double().train(), make_batches(kind, 1)[0][0])  # type: ignore[arg-type]


def optimizer_of(program: Program) -> torch.optim.Optimizer:
    return torch.optim.SGD(program.module.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)


def make(kind: Callable[[], nn.Module], *args: Any, **options: Any) -> tuple[Any, Loss]:
    program = copy.deepcopy(captured(kind))
    method = ComplexityAware(fp.training.Shrinker(program, optimizer_of(program)), *args, **options)
    (x, y), *_ = make_batches(kind, 1)  # type: ignore[arg-type]
    return method, lambda module: cross_entropy(module(x), y)


def scalars(method: ComplexityAware) -> list[str]:
    return [p for p, g in method.gates.items() if not g.theta.dim()]


def test_prices_of_a_block_by_hand() -> None:
    method, _ = make(ConvNet, 0.3, 0.25, 0.6, start=0.8)
    macs = 4 * 36 * (3 * 4 * 9 + 2 * 2 * 4 * 6 * 9) + 4 * 4 * 3
    params = 3 * 4 * 9 + 4 + 8 + 2 * (2 * 4 * 6 * 9 + 12 + 8) + 15
    assert (method.start_macs, method.start_params) == (macs, params)
    b, u = 0.8, 0.8
    costs = method.costs()
    paths = {f"blocks.{i}{part}.gate" for i in range(2) for part in ("", ".conv1")}
    assert costs.keys() == paths
    convs = 6 * u * 2 * 4 * 9
    block = 0.6 * 4 * 36 * convs / macs + 0.4 * (convs + 12 * u + 8) / params
    unit = 0.6 * b * 4 * 36 * 2 * 4 * 9 / macs + 0.4 * b * (2 * 4 * 9 + 2) / params
    assert costs["blocks.0.gate"].item() == pytest.approx(0.3 * 0.25 * block)
    torch.testing.assert_close(
        costs["blocks.0.conv1.gate"], torch.full((6,), 0.3 * 0.75 * unit).double()
    )


def test_alpha_chooses_the_gates() -> None:
    units, _ = make(ConvNet, 0.1, 0, 0.5)
    layers, _ = make(ConvNet, 0.1, 1, 0.5)
    assert scalars(units) == []
    assert scalars(layers) == list(layers.gates) == ["blocks.0.gate", "blocks.1.gate"]


def test_prices_are_worked_out_anew_now_and_then_and_after_removals() -> None:
    method, loss = make(ConvNet, 0.1, 0.5, 0.5, refresh=3, rate=1e-12)
    first = method.costs()
    path = scalars(method)[0]
    method.gates[path].set(0.5)
    assert method.costs() is method.costs() is first
    assert (method.costs()["blocks.0.conv1.gate"] < first["blocks.0.conv1.gate"]).all()
    method.gates[path].set(0.001)
    method.step(loss)
    assert len(method.end_epoch()) == 1
    assert set(method.costs()) == {"blocks.1.gate", "blocks.1.conv1.gate"}


def test_what_is_removed_is_what_was_expected() -> None:
    method, loss = make(ConvNet, 0.1, 0.5, 0.5, rate=1e-12)
    for gate in method.gates.values():
        gate.set(torch.tensor([0.0, 1, 1, 0, 1, 1]) if gate.theta.dim() else 1.0)
    method.gates["blocks.1.gate"].set(0.0)
    expected = method.numbers()
    method.step(loss)
    (change,) = method.end_epoch()
    found = method.numbers()
    assert expected["macs_share"] == expected["params_share"] == 1
    assert expected["expected_macs"] == found["macs_share"]
    assert expected["expected_params"] == found["params_share"]
    assert found["expected_macs"] == pytest.approx(found["macs_share"])
    assert (found["blocks"], found["units"]) == (1, 4)
    assert len(change.plans[0].removed) == 4
    assert method.step(loss).isfinite()


def test_a_block_goes_with_its_last_unit() -> None:
    method, loss = make(ConvNet, 0.1, 0.5, 0.5, rate=1e-12)
    method.gates["blocks.0.conv1.gate"].set(0.001)
    method.step(loss)
    assert method.end_epoch()
    assert not any(n.startswith("blocks.0.") for n in method.module.state_dict())
    assert set(method.gates) == {"blocks.1.gate", "blocks.1.conv1.gate"}


@pytest.mark.parametrize("kind", [ConvNet, Mlp])
def test_a_last_unit_stays_where_no_gate_can_take_the_layer(kind: type[nn.Module]) -> None:
    method, loss = make(kind, 0.1, 0, 0.5, rate=1e-12)
    for gate in method.gates.values():
        gate.set(torch.linspace(0.001, 0.002, len(gate.theta)))
    method.step(loss)
    assert method.end_epoch()
    assert method.numbers()["units"] == 2
    assert method.step(loss).isfinite()
    assert method.end_epoch() == []


def test_dear_units_go_and_the_network_trains_on() -> None:
    method, loss = make(Mlp, 30.0, 0, 1, rate=0.02)
    sizes = []
    for _ in range(6):
        for _ in range(5):
            method.step(loss)
        method.end_epoch()
        sizes.append(method.numbers()["macs_share"])
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.2


def test_a_plain_network_says_that_it_has_no_layers_to_prune() -> None:
    with pytest.raises(fp.training.TrainingError, match="no residual block"):
        make(Mlp, 0.1, 0.5, 0.5)
    with pytest.raises(fp.training.TrainingError, match="insert-skips"):
        make(Mlp, 0.1, 1, 0.5)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((0, 0.5, 0.5), {}),
        ((float("nan"), 0.5, 0.5), {}),
        ((0.1, 1.5, 0.5), {}),
        ((0.1, -0.1, 0.5), {}),
        ((0.1, 0.5, 1.01), {}),
        ((0.1, 0.5, 0.5), {"refresh": 0}),
    ],
)
def test_options_out_of_range(args: tuple[float, ...], options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        make(ConvNet, *args, **options)


def test_presets() -> None:
    program = copy.deepcopy(captured(ConvNet))
    shrinker = fp.training.Shrinker(program, optimizer_of(program))
    method = ComplexityAware.preset("imagenet-resnet50", shrinker, rate=0.5)
    assert (method.nu, method.alpha, method.beta, method.rate) == (2.4e-1, 0.5, 0.5, 0.5)
    with pytest.raises(OptionError, match="cifar10-resnet56"):
        ComplexityAware.preset("resnet", shrinker)


def test_going_on_from_a_checkpoint_is_as_not_stopping(tmp_path: Path) -> None:
    batches = make_batches(ConvNet, 14)
    method, _ = make(ConvNet, 0.5, 0.5, 0.5, refresh=4, rate=0.05, seed=3)

    def go_on(method: Any, batches: Any) -> list[float]:
        return [
            method.step(lambda module, x=x, y=y: cross_entropy(module(x), y)).item()
            for x, y in batches
        ]

    go_on(method, batches[:3])
    method.gates["blocks.0.conv1.gate"].theta.data[1:4] = 0.001
    assert method.end_epoch()
    go_on(method, batches[3:9])
    fp.save(method.shrinker.program, tmp_path / "program")
    torch.save([method.shrinker.state_dict(), method.state_dict()], tmp_path / "training.pt")
    losses = go_on(method, batches[9:])

    program = fp.load(tmp_path / "program")
    shrinker = fp.training.Shrinker(program, optimizer_of(program))
    again = ComplexityAware(shrinker, 0.5, 0.5, 0.5, refresh=4, rate=0.05)
    training, own = torch.load(tmp_path / "training.pt", weights_only=False)
    shrinker.load_state_dict(training)
    again.load_state_dict(own)
    assert go_on(again, batches[9:]) == losses
    assert_same(dict(again.module.state_dict()), dict(method.module.state_dict()))
    assert_same(again.state_dict(), method.state_dict())
    assert again.numbers() == method.numbers()


def _resnet() -> tuple[nn.Module, Tensor]:
    models = pytest.importorskip("torchvision.models")
    return models.resnet18(num_classes=3), torch.randn(2, 3, 32, 32)


def _mobilenet() -> tuple[nn.Module, Tensor]:
    models = pytest.importorskip("torchvision.models")
    stages = [[1, 8, 1, 1], [6, 8, 2, 2]]
    return models.MobileNetV2(3, 0.5, stages), torch.randn(2, 3, 16, 16)


def _vit() -> tuple[nn.Module, Tensor]:
    models = pytest.importorskip("torchvision.models")
    model = models.VisionTransformer(8, 4, 2, 2, 8, 16, dropout=0.1, num_classes=3)
    return model, torch.randn(2, 3, 8, 8)


class Logits(nn.Module):
    """A language model that gives the numbers behind its last token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.model(tokens, use_cache=False).logits[:, -1]
        return found


def _llama() -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return Logits(transformers.LlamaForCausalLM(config)), torch.randint(16, (2, 5))


@pytest.mark.parametrize("network", [_resnet, _mobilenet, _vit, _llama])
def test_networks_of_all_kinds(network: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    torch.manual_seed(0)
    model, x = network()
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-3)
    shrinker = fp.training.Shrinker(model, optimizer, args=x)
    small = sum(p.numel() for p in model.parameters()) < 1e4  # to verify a removal takes seconds
    method = ComplexityAware(shrinker, 0.1, 0.5, 0.5, rate=1e-9, verify=small)

    def loss(module: nn.Module) -> Tensor:
        return cross_entropy(module(x), torch.tensor([0, 1]))

    method.step(loss)
    for gate in method.gates.values():
        gate.set(1.0)
        if len(gate.theta.shape) and len(gate.theta) > 1:
            gate.theta.data[0] = 0.001
    method.gates[scalars(method)[-1]].set(0.001)
    before = method.numbers()
    assert method.end_epoch()
    after = method.numbers()
    assert after["macs_share"] == after["expected_macs"] < 1
    assert after["expected_params"] == after["params_share"] < 1
    assert after["blocks"] == before["blocks"] - 1
    assert method.step(loss).isfinite()


def test_half_precision_weights() -> None:
    half = make_batches(Transformer, 1)[0][0].bfloat16()
    torch.manual_seed(0)
    program = fp.capture(Transformer().bfloat16().train(), half)
    method = ComplexityAware(
        fp.training.Shrinker(program, optimizer_of(program)), 0.1, 0.5, 0.5, refresh=1
    )
    for _ in range(3):
        method.step(lambda module: cross_entropy(module(half).float(), torch.tensor([0, 1, 2, 0])))
    assert {c.dtype for c in method.costs().values()} == {torch.float32}
