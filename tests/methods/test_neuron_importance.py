"""Tests of NeuronImportance: order, counts, what does not count, going on from a file, every kind of network."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.observe import Contribution, observers
from fxprune.testing.training import ConvNet, Mlp, assert_same, captured, loss_of, make_batches
from fxprune.training import Shrinker, TrainingError
from fxprune_passes.methods import NeuronImportance

Tensor = torch.Tensor
Batch = tuple[Tensor, Tensor]


def start(program: Program, **options: Any) -> NeuronImportance:
    optimizer = torch.optim.SGD(program.module.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)
    return NeuronImportance(
        Shrinker(program, optimizer), **{"warmup": 0, "observe_every": 1, **options}
    )


def start_kind(kind: type[nn.Module], **options: Any) -> NeuronImportance:
    return start(captured(kind), **options)


def epochs(method: NeuronImportance, batches: list[Batch], count: int = 1) -> list[list[float]]:
    """Losses by epoch."""
    found = []
    for _ in range(count):
        found.append([method.step(loss_of(*batch)).item() for batch in batches])
        method.end_epoch()
    return found


@cache
def captured_paper_network() -> Program:
    torch.manual_seed(0)
    layers = [nn.Linear(12, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 3)]
    return fp.capture(nn.Sequential(*layers).double(), paper_batches(1)[0][0])


def paper_network() -> Program:
    """Captured once; a copy for each use."""
    return copy.deepcopy(captured_paper_network())


def paper_batches(count: int = 2) -> list[Batch]:
    rng = torch.Generator().manual_seed(1)
    return [
        (torch.randn(64, 12, generator=rng).double(), torch.randint(3, (64,), generator=rng))
        for _ in range(count)
    ]


def widths(method: NeuronImportance) -> list[int]:
    return [p.shape[0] for p in method.module.parameters() if p.dim() > 1]


@pytest.mark.parametrize("options", [{}, {"signed": True, "lam_avg": 0.0}])
def test_units_without_outgoing_weights_go_first(options: dict[str, Any]) -> None:
    program = paper_network()
    planted = [3, 17, 40, 49, 8]
    with torch.no_grad():
        program.module.get_parameter("2.weight")[:, planted] = 0
        program.module.get_parameter("4.weight")[:, [0, 29, 11]] = 0
        program.module.get_parameter("2.bias").add_(0.5)  # so that no other unit is always off
        wanted = [
            program.module.get_parameter(n)[[i for i in range(w) if i not in gone]].clone()
            for n, w, gone in (("0.weight", 50, planted), ("2.bias", 30, [0, 29, 11]))
        ]
    method = start(program, **options)
    for group in method.shrinker.optimizer.param_groups:
        group["lr"] = 0.0
    epochs(method, paper_batches())
    assert torch.equal(method.module.get_parameter("0.weight"), wanted[0])
    assert torch.equal(method.module.get_parameter("2.bias"), wanted[1])


def test_the_order_is_that_of_the_paper() -> None:
    """Of one batch, ranked by hand: C_avg and C_max by the outer product of terms."""
    program, (batch, *_) = paper_network(), paper_batches()
    first, second = (program.module.get_parameter(f"{i}.weight") for i in (0, 2))
    with torch.no_grad():
        a = torch.relu(batch[0] @ first.T + program.module.get_parameter("0.bias"))
        terms = a[:, None].abs() * second.abs()
        q = (terms / terms.sum(2, keepdim=True)).nan_to_num(0.0)
        order = (0.3 * q.mean((0, 1)) + 0.7 * q.amax((0, 1))).argsort()
    before = first.detach().clone()
    method = start(program, share=0.2, lam_avg=0.3, lam_max=0.7)
    for group in method.shrinker.optimizer.param_groups:
        group["lr"] = 0.0
    epochs(method, [batch])
    assert torch.equal(method.module.get_parameter("0.weight"), before[order[10:].sort().values])


@pytest.mark.parametrize("criterion", ["importance", "random"])
def test_counts_of_the_width_at_the_start(criterion: Any) -> None:
    method = start(paper_network(), target=0.68, criterion=criterion)
    for done in range(1, 7):
        epochs(method, paper_batches(1))
        assert widths(method) == [50 - 5 * done, 30 - 3 * done, 3]
        assert method.numbers()["gone"] == pytest.approx(done / 10)
    epochs(method, paper_batches(1))
    assert widths(method) == [50 - 34, 30 - 21, 3]
    assert method.done
    assert not observers(method.shrinker.program)
    epochs(method, paper_batches(1), 2)
    assert widths(method) == [16, 9, 3]


def test_small_layers_keep_pace() -> None:
    method = start_kind(Mlp, share=0.1, target=0.5)
    found = []
    for _ in range(5):
        epochs(method, make_batches(Mlp, 1))
        found.append(widths(method)[:2])
    assert found == [[8, 6], [7, 5], [6, 5], [5, 4], [4, 3]]


def test_counts_of_the_width_at_the_time() -> None:
    method = start(paper_network(), of="present")
    found = []
    for _ in range(3):
        epochs(method, paper_batches(1))
        found.append(widths(method))
    assert found == [[45, 27, 3], [41, 25, 3], [37, 23, 3]]


def test_no_layer_is_emptied_and_no_output_cut() -> None:
    method = start_kind(Mlp, share=1.0)
    epochs(method, make_batches(Mlp, 1), 3)
    assert widths(method) == [1, 1, 3]
    assert not method.done
    assert not observers(method.finish_training())


def test_warmup_and_rounds_of_several_epochs() -> None:
    method = start_kind(Mlp, share=0.25, warmup=2, epochs_per_round=2, target=0.5)
    found, seen = [], []
    for _ in range(6):
        for batch in make_batches(Mlp, 2):
            method.step(loss_of(*batch))
        seen.append(sum(int(o.seen) for o in observers(method.shrinker.program).values()))
        method.end_epoch()
        found.append(widths(method)[:2])
    assert found == [[8, 6]] * 3 + [[6, 5]] * 2 + [[4, 3]]
    assert [bool(s) for s in seen] == [False, False, False, True, False, True]


def test_only_steps_count() -> None:
    batches = make_batches(Mlp, 3)
    alone, watched = (start_kind(Mlp, warmup=0) for _ in range(2))
    for batch in batches:
        for method in (alone, watched):
            method.step(loss_of(*batch))
        watched.module.eval()
        watched.module(make_batches(Mlp, 1, seed=9)[0][0])
        watched.module.train()
    for a, b in zip(counters(alone), counters(watched), strict=True):
        assert_same(a, b)
    assert [int(o["seen"]) for o in counters(alone)] == [12 * 6, 12 * 3]


def counters(method: NeuronImportance) -> list[dict[str, Tensor]]:
    return [dict(o.named_buffers()) for o in observers(method.shrinker.program).values()]


def test_some_steps_count() -> None:
    method = start_kind(Mlp, observe_every=3, share=0.25)
    for batch in make_batches(Mlp, 5):
        method.step(loss_of(*batch))
    assert [int(o["seen"]) for o in counters(method)] == [2 * 4 * 6, 2 * 4 * 3]
    method.end_epoch()
    assert [int(o["seen"]) for o in counters(method)] == [0, 0]
    method.step(loss_of(*make_batches(Mlp, 1)[0]))
    assert [int(o["seen"]) for o in counters(method)] == [4 * 5, 4 * 3]


def test_a_step_that_was_given_up_has_not_counted() -> None:
    method = start_kind(Mlp)
    good, bad = make_batches(Mlp, 2)
    method.step(loss_of(*good))
    before = copy.deepcopy(counters(method))
    method.begin()
    method.module(bad[0])  # a loop of one's own that gave the step up
    method.begin()
    assert_same(counters(method), before)
    method.end_epoch()
    assert widths(method)[:2] == [8, 6]


def test_readers_of_one_stream_add_up() -> None:
    """A unit that the first block makes nothing of stays for what the others make of it."""
    program = captured(ConvNet)
    module = program.module
    with torch.no_grad():
        module.get_parameter("blocks.0.conv1.weight")[:, 1] = 0
        for name in ("blocks.0.conv1", "blocks.1.conv1", "head"):
            module.get_parameter(f"{name}.weight")[:, 2] *= 0.02
    stem = module.get_parameter("stem.weight").detach().clone()
    method = start(program, share=0.25)
    assert set(method.widths) == {
        f"{n}.weight:0" for n in ("stem", "blocks.0.conv1", "blocks.1.conv1")
    }
    for group in method.shrinker.optimizer.param_groups:
        group["lr"] = 0.0
    epochs(method, make_batches(ConvNet, 2))
    assert torch.equal(method.module.get_parameter("stem.weight"), stem[[0, 1, 3]])


def test_random_is_drawn_by_its_seed() -> None:
    def kept(seed: int) -> Tensor:
        method = start(paper_network(), share=0.5, criterion="random", seed=seed)
        method.shrinker.optimizer.param_groups[0]["lr"] = 0.0
        epochs(method, paper_batches(1))
        return method.module.get_parameter("0.bias").detach()

    assert torch.equal(kept(0), kept(0))
    assert not torch.equal(kept(0), kept(1))


def test_ignored_layers_stay_and_are_said_to() -> None:
    method = start_kind(Mlp, ignore=["one"], share=0.5)
    epochs(method, make_batches(Mlp, 1))
    assert widths(method)[:2] == [8, 3]
    assert method.left == {"one.weight:0": "one.weight is ignored"}
    assert [r.where for r in method.remarks] == ["one.weight:0"]
    assert method.numbers() == {"hidden_units": 3, "gone": 0.5, "groups_left": 1}


def test_going_on_behind_the_end() -> None:
    method, done = (start_kind(Mlp, share=0.5, target=0.5) for _ in range(2))
    epochs(method, make_batches(Mlp, 1))
    assert method.done
    with pytest.raises(TrainingError, match="another network"):
        done.load_state_dict(method.state_dict())
    again = NeuronImportance(Shrinker(method.shrinker.program, method.shrinker.optimizer))
    again.load_state_dict(method.state_dict())
    assert not observers(again.shrinker.program)
    with pytest.raises(TrainingError, match="other options"):
        start_kind(Mlp, signed=True).load_state_dict(start_kind(Mlp).state_dict())


def test_two_halves_of_an_epoch_merge_to_the_whole() -> None:
    """Replicas that see half the batches each decide as one that sees them all."""
    batches = make_batches(ConvNet, 4)
    parts = [batches, batches[:2], batches[2:]]
    methods = [start_kind(ConvNet) for _ in parts]
    for method, part in zip(methods, parts, strict=True):
        for group in method.shrinker.optimizer.param_groups:
            group["lr"] = 0.0
        for batch in part:
            method.step(loss_of(*batch))
    whole, half, other = (list(observers(m.shrinker.program).values()) for m in methods)
    for a, b, c in zip(whole, half, other, strict=True):
        b.merge(c)
        assert isinstance(b, Contribution)
        for name, buffer in a.named_buffers():
            torch.testing.assert_close(b.get_buffer(name), buffer, rtol=1e-12, atol=0)
    methods[0].rounds = methods[1].rounds = 5
    assert methods[0].decide() == methods[1].decide()


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0.0},
        {"target": 1.0},
        {"lam_avg": 0.0, "lam_max": 0.0},
        {"epochs_per_round": 0},
        {"observe_every": 0},
        {"warmup": -1},
        {"of": "some"},
        {"criterion": "guess"},
        {"ignore": ["nowhere"]},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        start_kind(Mlp, **options)


def test_a_network_without_ranks_is_refused_and_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    shrinker = Shrinker(model, optimizer, args=torch.randn(2, 4).double())
    with pytest.raises(TrainingError, match="no unit of this network has a rank"):
        NeuronImportance(shrinker)
    assert not observers(shrinker.program)
