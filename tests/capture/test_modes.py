"""Tests of fxprune.capture.modes, and of fxprune.graph.mode through captured programs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune as fp
from fxprune.capture.export import capture


class Doubler(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


class Attend(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rate = 0.5 if self.training else 0.0
        return functional.scaled_dot_product_attention(x, x, x, dropout_p=rate)


class Always(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5)


def network() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Dropout(0.3), nn.InstanceNorm2d(4), nn.RReLU(), norm
    )


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_switching_equals_the_model(captured: bool, mode: bool) -> None:
    model, x = network().train(captured), torch.randn(2, 3, 8, 8)
    twin = copy.deepcopy(model)
    program = capture(model, x).train(mode)
    twin.train(mode)
    torch.manual_seed(0)
    got = program(x)
    torch.manual_seed(0)
    torch.testing.assert_close(got, twin(x), rtol=0, atol=0)
    for name, value in program.module.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name])


def test_switching_there_and_back_is_the_same_graph() -> None:
    program = capture(network().train(), torch.randn(2, 3, 8, 8))
    before = [(n.op, str(n.target), str(n.args)) for n in program.nodes]
    program.eval().train()
    assert len(list(program.nodes)) == len(before)
    program.module.graph.lint()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent(kind: Any) -> None:
    program = capture(kind(4, 4, num_layers=2, dropout=0.5).eval(), torch.randn(3, 2, 4)).train()
    assert any(n.args[-3] is True for n in program.nodes if str(n.target).endswith(".input"))


def test_no_remark_where_the_graph_has_every_switch() -> None:
    assert not capture(network(), torch.randn(2, 3, 8, 8)).remarks


@pytest.mark.parametrize("training", [True, False])
def test_a_branch_on_training_is_remarked(training: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Doubler()).train(training)
    (remark,) = capture(model, torch.randn(2, 4)).remarks
    assert remark.code == "capture.mode-fixed"
    assert ": 1" in remark.what
    assert ("train mode" in remark.what) == training
    assert model.training == training


def test_stochastic_depth_is_remarked() -> None:
    ops = pytest.importorskip("torchvision.ops")
    (remark,) = capture(nn.Sequential(ops.StochasticDepth(0.2, "row")), torch.randn(2, 4)).remarks
    assert remark.code == "capture.mode-fixed"
    inert = nn.Sequential(ops.StochasticDepth(0.0, "row"))
    assert not capture(inert, torch.randn(2, 4)).remarks


def test_attention_dropout_is_switched() -> None:
    program = capture(Attend().eval(), torch.randn(2, 3, 4))
    assert not program.remarks
    rates = []
    for mode in (True, False, True):
        node = next(n for n in program.train(mode).nodes if "scaled_dot" in str(n.target))
        rates.append(node.kwargs.get("dropout_p", (*node.args, 0.0, 0.0)[4]))
    assert rates == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("training", [True, False])
def test_dropout_that_is_always_on_stays_on(training: bool) -> None:
    program = capture(Always().train(training), torch.ones(2, 400)).eval()
    assert (program(torch.ones(2, 400)) == 0).any()


class SometimesOn(nn.Dropout):
    """Derived from a layer that follows the mode, and does not."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, True)


class By(nn.Module):
    """A layer whose class names no mode."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


OUTSIDE: dict[str, Any] = {
    "always": lambda: SometimesOn(0.3),
    "function": lambda: By(lambda m, x: functional.dropout(x, 0.3, m.training)),
    "never": lambda: By(lambda m, x: functional.dropout(x, 0.3, False) + m.training * 0),
    "attention": lambda: By(
        lambda m, x: functional.scaled_dot_product_attention(
            x[:, None], x[:, None], x[:, None], dropout_p=0.3 * m.training
        )[:, 0]
    ),
    "slopes": lambda: By(lambda m, x: functional.rrelu(x, training=m.training)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_mode_is_what_running_in_it_shows(name: str, training: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 16), OUTSIDE[name](), nn.Linear(16, 4)).train(training)
    x = torch.randn(3, 4)
    program = capture(model, x)
    for mode in (True, False, training):
        got, wanted = list[Tensor](), list[Tensor]()
        for out, module in ((got, program.train(mode)), (wanted, model.train(mode))):
            torch.manual_seed(0)
            out.append(module(x))
        assert torch.equal(got[0], wanted[0])
    assert fp.prune(model, x, keep=0.6).plan.removed.size


def doubled(module: nn.Module, x: Tensor) -> Tensor:
    return x * 2 if module.training else x


def doubled_by_another(module: nn.Module, x: Tensor) -> Tensor:
    return doubled(module, x)


class Calling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return doubled_by_another(self, x)


class Asking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if getattr(self, "training") else x  # noqa: B009 (users write it so)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [Calling, Asking, lambda: By(doubled)])
def test_a_mode_read_by_a_function_is_remarked(make: Any, training: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), make()).train(training)
    (remark,) = capture(model, torch.randn(2, 4)).remarks
    assert remark.code == "capture.mode-fixed"
    assert fp.prune(nn.Sequential(model, nn.Linear(4, 2)), torch.randn(2, 4), keep=0.6)


def test_a_cumulative_average_is_remarked() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=None)).eval()
    assert [r.code for r in capture(model, torch.randn(2, 4)).remarks] == ["capture.mode-fixed"]


def test_a_frozen_norm_follows_like_the_module() -> None:
    model = network().train()
    model.get_submodule("1").eval()
    program = capture(model, torch.randn(2, 3, 8, 8)).train()
    norms = [n for n in program.nodes if "batch_norm" in str(n.target)]
    assert all(n.args[5] for n in norms)


class Grower(nn.Module):
    """Hands a list to a child that reads `training`, and lets it grow afterwards."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList([child, Second()])
        self.unused = Doubler()

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for child in self.parts:
            seen.append(child(seen))
        return seen[-1]


class Second(nn.Module):
    def forward(self, seen: list[Tensor]) -> Tensor:
        return torch.cat(seen, 1)


class Last(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.linear = nn.Linear(4, 4)

    def forward(self, seen: list[Tensor]) -> Tensor:
        (x,) = seen
        return self.linear(x * self.rate if self.training and self.rate else x)


@pytest.mark.parametrize(("rate", "fixed"), [(2.0, "parts.0"), (0.0, "")])
def test_a_suspect_is_run_alone_with_what_it_was_given(rate: float, fixed: str) -> None:
    remarks = capture(Grower(Last(rate)), torch.randn(2, 4)).remarks
    assert [fixed in r.what for r in remarks] == [True] * bool(fixed)
    assert not any("not confirmed" in r.why for r in remarks)


class ByName(nn.Module):
    """Calls the forward of a child, not the child."""

    def __init__(self) -> None:
        super().__init__()
        self.child, self.other = Doubler(), Doubler()

    def forward(self, x: Tensor) -> Tensor:
        return self.child.forward(x)


class Elsewhere(nn.Module):
    """Reads `training` in a method that its parent calls."""

    def twice(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x

    def forward(self, x: Tensor) -> Tensor:
        return x


class Caller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = Elsewhere()

    def forward(self, x: Tensor) -> Tensor:
        return self.child.twice(self.child(x))


@pytest.mark.parametrize("kind", [ByName, Caller])
def test_a_mode_read_outside_of_a_modules_call_is_seen(kind: type[nn.Module]) -> None:
    (remark,) = capture(nn.Sequential(kind()), torch.randn(2, 4)).remarks
    assert remark.code == "capture.mode-fixed"


class Counting(nn.Module):
    """Divides by a number that it changes at every call."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.layer, self.names = nn.Linear(4, 4), names
        self.rate = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            setattr(self, name, getattr(self, name, 0) + 1)
        return self.layer(x) / self.rate


@pytest.mark.parametrize("names", [(), ("rate",), ("calls",), ("rate", "calls")])
def test_a_number_that_forward_changes_is_remarked(names: tuple[str, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Counting(names))
    program = capture(model, torch.randn(2, 4))
    assert sorted(r.where for r in program.remarks) == sorted(
        f"Sequential, attribute 1.{name}" for name in names
    )
    assert {r.code for r in program.remarks} <= {"capture.attribute-changed"}
    assert model[1].rate == 1.0
    assert not hasattr(model[1], "calls")
