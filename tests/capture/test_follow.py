"""Tests of fxprune.capture.follow: constants of a captured network follow it to another dtype and device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fxprune as fp
from fxprune.capture.export import capture

BOTH = pytest.mark.parametrize("route", ["recorded", "exported"])
HALF = torch.bfloat16


class Fn(nn.Module):
    """A linear layer whose output goes through a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


class Tokens(nn.Module):
    """No floating-point input: its constants are of the type of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.out = nn.Embedding(9, 8), nn.Embedding(5, 8), nn.Linear(8, 9)

    def forward(self, ids: Tensor) -> Any:
        h = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        n = h.shape[1]
        of: dict[str, Any] = {"dtype": h.dtype, "device": h.device}
        mask = torch.full((n, n), float("-inf"), **of).triu(1)
        angles = torch.outer(torch.arange(n, **of), torch.linspace(0, 1, 8, **of)).cos()
        weights = ((h @ h.mT).float() + mask).softmax(-1).to(h.dtype)
        return self.out(weights @ h * angles)


def fixed(x: Tensor) -> Tensor:
    """Computes in float32, whatever the network's type is."""
    scale = torch.ones(4, dtype=torch.float32, device=x.device)
    return (x.float() * scale).softmax(-1, dtype=torch.float32)


def made(x: Tensor) -> Tensor:
    of: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
    y = x + torch.zeros(4, **of) + torch.ones(x.shape[0], 1, **of) + torch.empty(4, **of).fill_(2)
    return y + torch.eye(4, **of)[0] + torch.full((4,), 0.5, **of) + torch.tensor(0.5, **of)


def attention(x: Tensor) -> Tensor:
    """A masked attention, as it is often written."""
    q = x[:, None] * torch.arange(1, 4, dtype=x.dtype, device=x.device)[None, :, None]
    scores, least = q @ q.mT, torch.finfo(x.dtype).min
    hidden = torch.ones(3, 3, dtype=torch.bool, device=x.device).triu(1)
    mask = torch.full((3, 3), least, dtype=x.dtype, device=x.device).triu(1)
    late = (1.0 - hidden.to(x.dtype)) * least
    filled = scores.masked_fill(hidden, least) + torch.where(hidden, scores, least)
    return (torch.softmax(filled + mask, -1) + torch.softmax(scores + late, -1)) @ q


def limits(x: Tensor) -> Tensor:
    of = torch.finfo(x.dtype)
    y = (x.abs() + of.eps).clamp(min=of.eps, max=1.0).log() / of.eps
    z = torch.full_like(x, of.max) / of.max + x.new_full((4,), of.min) / of.max
    return y.clamp_min(of.min) + (z * of.eps) + x.mul(of.max).clamp(max=of.max) / of.max


def reduced(x: Tensor) -> Tensor:
    """Reductions that are told the type that they have."""
    y = x.softmax(-1, dtype=x.dtype) + x.sum(0, dtype=x.dtype) + x.cumsum(0, dtype=x.dtype)
    return y + x.norm(dim=1, keepdim=True, dtype=x.dtype) + x.float().mean(0, dtype=x.dtype)


def branches(x: Tensor) -> Tensor:
    return (x + torch.ones(4, dtype=x.dtype)) if x.dtype == torch.float32 else x * 2


LIMITS: list[Callable[[Tensor], float]] = [
    lambda x: torch.finfo(x.dtype).min,
    lambda x: torch.finfo(x.dtype).max,
]
NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "LSTM": lambda: (nn.LSTM(4, 8, batch_first=True), torch.randn(2, 5, 4)),
    "GRU": lambda: (nn.GRU(4, 8, batch_first=True), torch.randn(2, 5, 4)),
    "RNN": lambda: (nn.RNN(4, 8, batch_first=True), torch.randn(2, 5, 4)),
    "tokens": lambda: (Tokens(), torch.randint(0, 9, (2, 5))),
    "fixed": lambda: (Fn(fixed), torch.randn(2, 4)),
    "made": lambda: (Fn(made), torch.randn(2, 4)),
    "attention": lambda: (Fn(attention), torch.randn(2, 4)),
    "reduced": lambda: (Fn(reduced), torch.randn(2, 4)),
    "weight norm": lambda: (weight_norm(nn.Linear(4, 4)), torch.randn(2, 4)),
    "limits": lambda: (Fn(limits), torch.randn(2, 4)),
    "new": lambda: (Fn(lambda x: x + x.new_ones(4) + torch.zeros_like(x)), torch.randn(2, 4)),
    "cast": lambda: (Fn(lambda x: x + (x > 0).to(x.dtype).to(x)), torch.randn(2, 4)),
    "copied": lambda: (Fn(lambda x: x.to(x.dtype, copy=True).mul_(2) + x), torch.randn(2, 4)),
}


def captured(model: nn.Module, x: Tensor, route: str, patch: pytest.MonkeyPatch) -> fp.Program:
    """The program of a recording, or that of an export."""

    def refuse(*_: Any) -> None:
        raise AssertionError

    with patch.context() as m:
        if route == "exported":
            m.setattr(import_module("fxprune.capture.export"), "trace", refuse)
        else:
            m.setattr(torch.export, "export", refuse)
        return capture(model.eval(), x)


def first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, HALF, torch.float16])
@pytest.mark.parametrize("name", NETS)
def test_it_computes_what_the_model_does_in_another_dtype(
    name: str, dtype: torch.dtype, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = NETS[name]()
    module = captured(model, x, route, monkeypatch).module
    torch.testing.assert_close(first(module(x)), first(model(x)))
    x = x.to(dtype) if x.is_floating_point() else x
    got, wanted = first(module.to(dtype)(x)), first(model.to(dtype)(x))
    # What was made in float32 and then converted has its digits only.
    rtol, atol = (2e-2, 1e-3) if dtype.itemsize == 2 else (1e-5, 1e-6)
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


@BOTH
@pytest.mark.parametrize("name", NETS)
def test_it_runs_on_another_device(name: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = NETS[name]()
    module = copy.deepcopy(captured(model, x, route, monkeypatch).module)
    assert first(module.to("meta")(x.to("meta"))).is_meta


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0])


def test_a_pruned_network_can_be_moved() -> None:
    small = fp.prune(Recurrent().eval(), torch.randn(2, 5, 4), keep=0.5).program.module
    assert small.get_parameter("out.weight").shape[1] < 16
    x = torch.randn(3, 5, 4)
    single = small(x)
    torch.testing.assert_close(small.double()(x.double()).float(), single)


def test_a_saved_network_can_be_moved(tmp_path: Path) -> None:
    model, x = Recurrent().eval(), torch.randn(2, 5, 4)
    fp.save(capture(model, x), tmp_path / "net")
    module = fp.load(tmp_path / "net").module.double()
    torch.testing.assert_close(module(x.double()), model.double()(x.double()))


def test_a_network_that_branches_on_its_dtype_keeps_its_constants() -> None:
    program = capture(Fn(branches), torch.randn(2, 4))
    assert [n.kwargs["dtype"] for n in program.nodes if "ones" in n.name] == [torch.float32]


def test_a_network_that_spells_nothing_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("fxprune.capture.spelled"), "WithoutData", None)
    capture(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), torch.randn(2, 3, 8, 8)
    )


def test_each_limit_is_exact() -> None:
    model = Fn(lambda x: torch.stack([x.new_full((), v(x)) + 0 * x.sum() for v in LIMITS]))
    module = capture(model, torch.ones(2, 4)).module
    for dtype in (torch.float32, torch.float16, HALF, torch.float64):
        x = torch.ones(2, 4, dtype=dtype)
        assert torch.equal(module.to(dtype)(x), model.to(dtype)(x))


def test_a_number_that_cannot_follow_is_remarked() -> None:
    def half_way(x: Tensor) -> Tensor:
        return x.masked_fill(x > 0, torch.finfo(x.dtype).min / 2).softmax(-1)

    (remark,) = capture(Fn(half_way), torch.randn(2, 4)).remarks
    assert remark.code == "capture.number-fixed"
    assert "masked_fill" in remark.where
    assert not capture(Fn(lambda x: x.masked_fill(x > 0, -1e9)), torch.randn(2, 4)).remarks


TABLE = [0.1, 0.2, 0.3, 0.4]


def least(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.tensor(torch.finfo(x.dtype).min).to(x.dtype))


def no_overflow(x: Tensor) -> Tensor:
    return x.clamp(-1, 1) if x.dtype == torch.float16 else x


def finite(x: Tensor) -> Tensor:
    return x.clamp(-1, 1) if x.dtype == torch.float16 and bool(x.isinf().any()) else x


REMARKED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "limit": (least, "lift_fresh"),
    "number": (lambda x: x * torch.tensor(0.1, dtype=x.dtype), "lift_fresh"),
    "table": (lambda x: x * x.new_tensor(TABLE), "lift_fresh"),
    "fixed": (lambda x: (x.float() * torch.tensor([1.0, 1e6, 1, 1])).to(x.dtype), "lift_fresh"),
    "linspace": (lambda x: x + torch.linspace(0, 1, 4, dtype=x.dtype), "linspace"),
    "steps": (lambda x: x + torch.arange(0, 0.4, 0.1, dtype=x.dtype), "arange"),
    "window": (lambda x: x * torch.hann_window(4, dtype=x.dtype), "hann_window"),
    "smallest": (lambda x: x.abs() + torch.finfo(x.dtype).tiny, "add"),
    "some eps": (lambda x: x.abs() + 10 * torch.finfo(x.dtype).eps, "add"),
    "other number": (lambda x: x + (0.5 if x.dtype == torch.float16 else 0.25), "float16"),
    "other operator": (no_overflow, "float16"),
    "values": (finite, "float16"),
    "called": (lambda x: no_overflow(x), "float16"),
}
UNREMARKED: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": lambda x: x * torch.tensor([0.5, 1, 2, 4], dtype=x.dtype) + torch.tensor(2.0),
    "integers": lambda x: x + torch.arange(4, dtype=x.dtype) + torch.tensor([1, 2, 3, 4]),
    "filled": lambda x: x + torch.full((4,), 0.1, dtype=x.dtype),
    "fixed table": lambda x: x + torch.linspace(0, 1, 4).to(x.dtype),
    "ordinary": lambda x: nn.functional.layer_norm(x, (4,), eps=1e-5) * 0.1 + x.to(x.dtype),
}


@BOTH
@pytest.mark.parametrize("name", REMARKED)
def test_numbers_that_are_not_the_models_in_another_dtype_are_remarked(
    name: str, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, word = REMARKED[name]
    (remark,) = captured(Fn(function), torch.randn(2, 4), route, monkeypatch).remarks
    assert remark.code == "capture.number-fixed"
    assert word in f"{remark.where} {remark.what}"


@BOTH
@pytest.mark.parametrize("name", UNREMARKED)
def test_numbers_that_are_the_models_in_any_dtype_are_not(
    name: str, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Fn(UNREMARKED[name]), torch.randn(2, 4)
    program = captured(model, x, route, monkeypatch)
    assert not program.remarks
    for dtype in (torch.float64, torch.float16):
        got, wanted = (m.to(dtype)(x.to(dtype)) for m in (program.module, model))
        torch.testing.assert_close(got, wanted, rtol=1e-3 if dtype.itemsize == 2 else 1e-12, atol=0)


def test_limits_of_a_saved_and_pruned_network_follow(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(y.masked_fill(y < 0, torch.finfo(y.dtype).min).relu())

    model, x = Net(), torch.randn(2, 4)
    fp.save(fp.prune(model, x, keep=0.5).program, tmp_path / "net")
    module = fp.load(tmp_path / "net").module
    single = module(x)
    torch.testing.assert_close(module.half()(x.half()).float(), single, rtol=1e-2, atol=1e-2)


def test_the_counter_of_a_norm_gives_no_type() -> None:
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x)).flatten(2).sum(1)
            at = torch.arange(y.shape[1], device=y.device)
            return y * at.to(y.dtype) + at

    outcome = fp.prune(Numbered().eval(), torch.randn(2, 3, 4, 4), keep=0.6, multiple_of=1)
    assert outcome.plan.removed.size
    counters = [n for n in outcome.program.nodes if "num_batches" in str(n.target)]
    assert all("type_as" not in str(u.target) for n in counters for u in n.users)
