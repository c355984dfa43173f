"""Entropy-guided pruning: entropies, budgets, rounds, removal, stopping and going on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from math import exp, inf, log2
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.observe import observers
from fxprune.structure.activations import find_activations
from fxprune.testing.training import Batch, ConvNet, capture, loss_of, make_batches, make_model
from fxprune.training import Shrinker, TrainingError
from fxprune_passes.methods.entropy_guided import EntropyGuided

# Rounds

SAMPLES = 64


class Deep(nn.Module):
    """Three hidden layers with ReLU, two of them in residual branches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(5, 8)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 8)
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.stem(x))
        x = x + self.two(self.act2(self.one(x)))
        x = x + self.b(self.act3(self.a(x)))
        found: Tensor = self.head(x)
        return found


def batches(count: int = 4, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(SAMPLES, 5, generator=generator).double(),
            torch.randint(3, (SAMPLES,), generator=generator),
        )
        for _ in range(count)
    ]


@cache
def captured() -> Program:
    return fp.capture(Deep().double().train(), batches(1)[0][0])


def make(
    model: nn.Module | None = None, lr: float = 0.05, name: str = "SGD", **options: Any
) -> EntropyGuided:
    program = copy.deepcopy(captured())
    program.module.load_state_dict((model or Deep()).state_dict())
    return method_of(program, lr, name, **options)


def method_of(
    program: Program, lr: float = 0.05, name: str = "SGD", **options: Any
) -> EntropyGuided:
    extra = {"momentum": 0.9} if name == "SGD" else {}
    kind = getattr(torch.optim, name)
    optimizer = kind(program.module.parameters(), lr, weight_decay=1e-3, **extra)
    return EntropyGuided(Shrinker(program, optimizer), **options)


def run_epoch(method: EntropyGuided, data: list[Batch]) -> list[float]:
    found = [float(method.step(loss_of(x, y))) for x, y in data]
    method.end_epoch()
    return found


def activations(program: Program) -> int:
    return len(list(find_activations(program)))


def reference(inputs: list[list[float]], plain: bool) -> float:
    """H_l in bits from the pre-activations `[neurons][numbers]`."""
    bits = []
    for row in inputs:
        p = sum(v > 0 for v in row) / len(row)
        if 0 < p < 1:
            bits.append(-p * log2(p) - (1 - p) * log2(1 - p))
        elif plain:
            bits.append(0.0)
    return sum(bits) / len(bits) if bits else 0.0


@pytest.mark.parametrize("plain", [False, True])
def test_entropies_and_budgets_against_a_plain_reference(plain: bool) -> None:
    model, data = Deep().double(), batches()
    with torch.no_grad():
        model.a.bias[0] = 50.0  # always on: not in the mean
    weights = {n: getattr(model, n).weight.detach().clone() for n in ("stem", "one", "a")}
    x = torch.cat([b[0] for b in data])
    with torch.no_grad():
        pre1 = model.stem(x)
        x1 = pre1.relu()
        pre2 = model.one(x1)
        pre3 = model.a(x1 + model.two(pre2.relu()))
    method = make(model, lr=0.0, zeta=0.4, plain_mean=plain)
    run_epoch(method, data)
    entropies = [reference(p.T.tolist(), plain) for p in (pre1, pre2, pre3)]
    assert list(method.entropies.values()) == pytest.approx(entropies, rel=1e-12)
    flat = [w.flatten().tolist() for w in weights.values()]
    means = [sum(map(abs, w)) / len(w) for w in flat]
    irrelevance = [h * m for h, m in zip(entropies, means, strict=True)]
    powers = [exp(sum(irrelevance) / i) for i in irrelevance]
    budget = round(0.4 * sum(map(len, flat)))
    left, parts = float(budget), dict.fromkeys(range(3), 0.0)
    free = set(range(3))
    while free:  # one cap at a time
        share = {i: left * powers[i] / sum(powers[k] for k in free) for i in free}
        over = [i for i in sorted(free) if share[i] >= len(flat[i])]
        if not over:
            parts.update(share)
            break
        parts[over[0]] = float(len(flat[over[0]]))
        left -= parts[over[0]]
        free.remove(over[0])
    found = list(method.budgets.values())
    assert sum(found) == budget
    assert all(abs(m - parts[i]) < 1 for i, m in enumerate(found))
    tensors = method.shrinker.program.tensors()
    for (name, before), count in zip(weights.items(), found, strict=True):
        order = before.abs().flatten().sort().values
        gone = before.abs() < (order[count] if count < len(order) else inf)
        assert torch.equal(tensors[f"{name}.weight"].detach(), before.masked_fill(gone, 0))
    left_share = method.numbers()["weights_left"]
    assert left_share == pytest.approx(1 - budget / sum(map(len, flat)))


def test_most_bounds_what_a_layer_loses() -> None:
    method = make(zeta=0.9, most=0.5)
    run_epoch(method, batches())
    assert method.numbers()["weights_left"] >= 0.5
    assert all(
        m <= 0.5 * sum(method.shrinker.program.tensors()[n].numel() for n in layer.weights)
        for layer, m in zip(method.layers(), method.budgets.values(), strict=True)
    )


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_weights_stay_0_through_rounds(name: str) -> None:
    method = make(name=name, lr=0.01, zeta=0.3)
    gone: dict[str, Tensor] = {}
    for _ in range(3):
        run_epoch(method, batches())
        tensors = method.shrinker.program.tensors()
        masks = method.masks.masks()
        for name, before in gone.items():
            if name in masks and masks[name].shape == before.shape:
                assert bool(masks[name][before].all())
        gone = {n: m.clone() for n, m in masks.items()}
        assert all(bool((tensors[n][m] == 0).all()) for n, m in masks.items())
    assert method.numbers()["weights_left"] < 0.4


def test_counts_in_training_steps_of_the_last_epoch_of_a_round() -> None:
    method = make(epochs_per_round=2, observe_every=2)
    counts = []
    for _ in range(4):
        for x, y in batches(5):
            method.step(loss_of(x, y))
            method.module(x)  # an evaluation
        counts.append([int(o.seen) for o in observers(method.shrinker.program).values()])
        method.end_epoch()
    assert counts[0] == [0, 0, 0]
    assert counts[1][0] == 3 * SAMPLES
    assert counts[3][0] == 3 * SAMPLES
    assert len(method.budgets) == len(method.layers())


def test_behind_the_last_round_it_only_trains() -> None:
    method = make(rounds=2)
    shares = []
    for _ in range(4):
        run_epoch(method, batches())
        shares.append(method.numbers()["weights_left"])
    assert shares[0] > shares[1] == shares[2] == shares[3]
    assert method.round == 2
    assert method.done
    program = method.shrinker.program
    masks = method.masks.masks()
    assert all(bool((program.tensors()[n][m] == 0).all()) for n, m in masks.items())


def test_an_epoch_without_steps_ends_no_round() -> None:
    method = make()
    assert method.end_epoch() == []
    assert not method.entropies
    assert set(method.numbers()) == {"layers_linear", "layers_gone", "weights_left"}
    run_epoch(method, batches())
    assert method.entropies


# Layers that go


def planted(kind: str) -> Deep:
    model = Deep()
    with torch.no_grad():
        bias = model.a.bias
        bias.fill_(-50.0 if kind == "off" else 50.0)
        if kind == "mixed":
            bias[[1, 4]] = -50.0
    return model


@pytest.mark.parametrize("kind", ["on", "off", "mixed"])
def test_a_linear_layer_goes_and_nothing_else_changes(kind: str) -> None:
    method = make(planted(kind), lr=1e-3, zeta=0.2, ignore=["stem.*"])
    data = batches()
    for x, y in data:
        method.step(loss_of(x, y))
    before = copy.deepcopy(method.shrinker.program)
    silenced = before.module(data[0][0])
    changes = method.end_epoch()
    assert changes
    small = method.shrinker.program
    tensors = {n: t.detach().clone() for n, t in small.tensors().items()}
    assert activations(small) == 2
    assert method.numbers()["layers_linear"] == 1
    assert "act3.observer" not in observers(small)
    if kind == "off":
        assert "a.weight" not in tensors
        assert "a.weight" in changes[0].left
    else:
        assert tensors["a.weight"].shape[0] == (4 if kind == "mixed" else 6)
    # The weights that this round pruned put aside, it computes what the network before did.
    whole = before.tensors()
    with torch.no_grad():
        for name, mask in method.masks.masks().items():
            small.tensors()[name][mask] = whole[name][mask]
    torch.testing.assert_close(small.module(data[0][0]), silenced, rtol=1e-12, atol=1e-12)
    run_epoch(method, data)


@pytest.mark.parametrize("fuse", [False, True])
def test_layers_around_an_identity_are_fused(fuse: bool) -> None:
    method = make(planted("on"), lr=1e-3, zeta=0.1, fuse=fuse)
    data = batches()
    run_epoch(method, data)
    assert ("a.weight" in method.shrinker.program.tensors()) is not fuse
    run_epoch(method, data)
    closed = method.finish_training()
    assert not closed.training
    assert not observers(closed)
    assert "a.weight" not in closed.tensors()
    x = data[0][0]
    expected = copy.deepcopy(method.shrinker.program).eval()
    torch.testing.assert_close(closed.module(x), expected.module(x))


def test_norms_in_train_mode() -> None:
    """A branch that is off goes with its norms; one that is on keeps them to the end."""
    model = make_model(ConvNet)
    assert isinstance(model, ConvNet)
    with torch.no_grad():
        model.get_parameter("blocks.0.bn1.bias").fill_(-50.0)
        model.get_parameter("blocks.1.bn1.bias").fill_(50.0)
    method = method_of(capture(model), 1e-3, zeta=0.1)
    data = make_batches(ConvNet, 4)
    for x, y in data:
        method.step(loss_of(x, y))
    expected = method.module(data[0][0])
    method.zeta = 1e-9  # no weights
    method.end_epoch()
    torch.testing.assert_close(method.module(data[0][0]), expected)
    assert method.numbers()["layers_linear"] == 2
    names = set(method.shrinker.program.tensors())
    assert "blocks.0.conv1.weight" not in names
    assert {"blocks.0.bn2.bias", "blocks.1.conv1.weight", "blocks.1.bn1.weight"} <= names
    run_epoch(method, data)
    closed = method.finish_training()
    assert not any("bn" in name for name in closed.tensors() if "blocks.1" in name)
    twin = copy.deepcopy(method.shrinker.program).eval()
    torch.testing.assert_close(closed.module(data[0][0]), twin.module(data[0][0]))


def test_nearly_linear_activations_go_where_the_loss_allows_it() -> None:
    x, y = batches(1)[0]
    seen: list[bool] = []

    def loss(module: nn.Module) -> Tensor:
        seen.append(module.training)
        return cross_entropy(module(x), y)

    method = make(zeta=0.1, eps=2.0, rise=100.0, loss=loss)
    run_epoch(method, batches())
    assert not method.layers()
    assert seen
    assert not any(seen)
    assert method.module.training
    kept = make(zeta=0.1, eps=2.0, rise=-100.0, loss=loss)
    run_epoch(kept, batches())
    assert len(kept.layers()) == 3
    run_epoch(method, batches())
    assert method.done


def test_what_is_ignored_stays() -> None:
    method = make(zeta=0.9, ignore=["act2", "a.weight"])
    assert [layer.path for layer in method.layers()] == ["act1.observer", "act3.observer"]
    assert [layer.weights for layer in method.layers()] == [("stem.weight",), ()]
    run_epoch(method, batches())
    assert set(method.masks.masks()) == {"stem.weight"}


def test_which_weights_feed_an_activation() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.b, self.c, self.skip = (nn.Conv2d(4, 4, 1) for _ in range(3))
            self.gate, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(nn.functional.max_pool2d(self.norm(self.a(x)), 2))
            x = torch.relu(self.c(torch.relu(self.b(x))) + self.skip(x))
            x = torch.relu(x + self.b(x))  # a shared layer
            x = x.mean((2, 3))
            return self.head(x * torch.sigmoid(self.gate(x)))

    program = fp.capture(Net(), torch.randn(2, 3, 8, 8))
    method = method_of(program)
    assert [set(layer.weights) for layer in method.layers()] == [
        {"a.weight"},
        {"b.weight"},
        {"c.weight", "skip.weight"},
        set(),
    ]


# Entropy alone


def accuracies(*values: float) -> tuple[Callable[[nn.Module], float], list[bool]]:
    """A measure that gives these numbers, and the modes in which it was asked."""
    left, modes = list(values), list[bool]()

    def measure(module: nn.Module) -> float:
        modes.append(module.training)
        module(batches(1)[0][0])
        return left.pop(0)

    return measure, modes


def test_entropy_alone_takes_the_lowest_first() -> None:
    method = make(zeta=None)
    data = batches()
    for left in (2, 1, 0):
        run_epoch(method, data)
        lowest = min(method.entropies, key=method.entropies.__getitem__)
        assert lowest not in {layer.path for layer in method.layers()}
        assert activations(method.shrinker.program) == left
        assert not method.done
    assert not method.masks.masks()
    run_epoch(method, data)
    assert method.done
    assert method.good is None
    assert method.numbers()["layers_linear"] == 3
    assert activations(method.finish_training()) == 0


def test_the_mean_is_plain_where_no_weights_go() -> None:
    assert make(zeta=None).plain_mean
    assert not make(zeta=0.5).plain_mean
    assert not make(zeta=None, plain_mean=False).plain_mean
    model = Deep()
    with torch.no_grad():
        model.one.bias[1:] = 50.0  # seven of eight always on: the lowest plain mean
    method = make(model, zeta=None)
    run_epoch(method, batches())
    assert min(method.entropies, key=method.entropies.__getitem__) == "act2.observer"


def test_the_curve_is_the_accuracy_of_each_round() -> None:
    """Three rounds that remove, and one that retrains after the last removal."""
    evaluate, modes = accuracies(0.9, 0.5, 0.8, 0.1)
    method = make(zeta=None, evaluate=evaluate, epochs_per_round=2)
    started = []
    for _ in range(10):
        started.append(method.round_started)
        run_epoch(method, batches())
    assert started == [True, False] * 5  # the last of them after the measurement
    assert modes == [False] * 4
    assert [(linear, accuracy) for linear, _, accuracy in method.curve] == [
        (0, 0.9),
        (1, 0.5),
        (2, 0.8),
        (3, 0.1),
    ]
    assert method.numbers()["accuracy"] == 0.1
    assert method.module.training


def test_with_a_number_of_rounds_the_last_one_is_measured() -> None:
    evaluate, _ = accuracies(0.9, 0.8)
    method = make(zeta=None, evaluate=evaluate, rounds=1)
    for _ in range(3):
        run_epoch(method, batches())
    assert method.done
    assert [linear for linear, *_ in method.curve] == [0, 1]


def test_training_goes_on_from_the_network_before_the_fall() -> None:
    evaluate, _ = accuracies(0.9, 0.89, 0.7)
    method = make(zeta=None, evaluate=evaluate, delta=0.05, name="AdamW")
    data = batches()
    run_epoch(method, data)
    for x, y in data:
        method.step(loss_of(x, y))
    good = copy.deepcopy(method.shrinker.program)
    method.end_epoch()
    kept = method.good
    assert kept is not None
    assert activations(kept) == 2
    assert activations(method.shrinker.program) == 1
    for x, y in data:
        method.step(loss_of(x, y))
    assert len(method.end_epoch()) == 1
    assert method.done
    assert method.round_started
    assert method.good is None
    x, y = data[0]
    assert torch.equal(method.module.eval()(x), good.eval()(x))
    assert method.numbers()["layers_linear"] == 1
    weights = {n: p.detach().clone() for n, p in method.module.named_parameters()}
    assert not method.shrinker.optimizer.state
    method.module.train()
    assert run_epoch(method, data)
    found = dict(method.module.named_parameters())
    assert not any(torch.equal(found[n], w) for n, w in weights.items())
    assert activations(method.finish_training()) == 2


def test_accuracy_ends_pruning_too() -> None:
    evaluate, _ = accuracies(0.5, 0.9, 0.7)  # against the best so far
    method = make(zeta=0.2, evaluate=evaluate, delta=0.1)
    for _ in range(4):
        run_epoch(method, batches())
    assert method.done
    assert method.numbers()["weights_left"] == pytest.approx(0.8, abs=0.03)  # of the first round


def test_weights_of_a_layer_that_comes_back_stay_0() -> None:
    evaluate, _ = accuracies(0.9, 0.9, 0.1)
    method = make(zeta=0.2, evaluate=evaluate, delta=0.1)
    run_epoch(method, batches())
    with torch.no_grad():
        method.module.get_parameter("a.bias").fill_(-50.0)
    for x, y in batches():
        method.step(loss_of(x, y))
    masks = method.masks.masks()
    method.end_epoch()
    assert "a.weight" not in method.shrinker.program.tensors()
    run_epoch(method, batches())
    assert method.done
    run_epoch(method, batches())
    found = method.shrinker.program.tensors()
    assert bool(masks["a.weight"].any())
    assert all(bool((found[n][m] == 0).all()) for n, m in masks.items())


def test_going_back_after_going_on_from_files(tmp_path: Path) -> None:
    method = make(zeta=None, evaluate=accuracies(0.9, 0.89)[0], delta=0.05)
    for _ in range(2):
        run_epoch(method, batches())
    assert method.good is not None
    fp.save(method.shrinker.program, tmp_path / "program")
    torch.save(method.state_dict(), tmp_path / "method.pt")

    options: dict[str, Any] = {"zeta": None, "evaluate": accuracies(0.1)[0], "delta": 0.05}
    again = method_of(fp.load(tmp_path / "program"), **options)
    again.load_state_dict(torch.load(tmp_path / "method.pt"))
    assert [linear for linear, *_ in again.curve] == [0, 1]
    run_epoch(again, batches())
    assert again.done
    assert again.shrinker.program.training
    x = batches()[0][0]
    assert torch.equal(again.module(x), method.good.module(x))
    before = again.module.get_parameter("head.weight").detach().clone()
    run_epoch(again, batches())
    assert not torch.equal(again.module.get_parameter("head.weight"), before)


# Refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"zeta": 0.0}, "zeta is 0.0"),
        ({"delta": 0.1}, "evaluate is None"),
        ({"fuse_when": "never"}, "fuse_when is 'never'"),
        ({"eps": 0.1}, "loss is None"),
        ({"most": 0.0}, "most is 0.0"),
        ({"observe_every": 0}, "observe_every is 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        make(**options)


def test_nothing_to_observe() -> None:
    with pytest.raises(TrainingError, match="no activation function can be observed"):
        make(ignore="*")
