"""Tests of fxprune.stand_in: whatever a forward changes, the model is as it was after capture, pruning and failure."""

import functools
import random
import threading
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.overrides import _get_current_function_mode_stack

import fxprune as fp
from fxprune.stand_in import stand_in
from fxprune.testing.state import check_unchanged, state_of

LOG: list[Any] = []
CACHE: dict[Any, Any] = {"kept": [1]}
COUNT = 0


class Frozen(OrderedDict[str, Any]):
    """As the configuration of diffusers models."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("frozen")

    __setitem__ = __delitem__ = __setattr__ = update = pop = setdefault = clear = _refuse


def frozen(**entries: Any) -> Frozen:
    new = Frozen()
    for key, value in entries.items():
        OrderedDict.__setitem__(new, key, value)
    return new


@dataclass
class Stats:
    seen: int = 0
    shapes: list[Any] = field(default_factory=list)


class Slots:
    __slots__ = ("empty", "seen")

    def __init__(self) -> None:
        self.seen: Any = 0


class Uncopyable:
    """An object with state that refuses to be copied."""

    def __init__(self) -> None:
        self.lock, self.seen = threading.Lock(), [0]

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise RuntimeError("there is one of me")


class Closing:
    """An object that would let go of something twice if it were copied."""

    def __init__(self, closed: list[str]) -> None:
        self.seen, self.closed = 0, closed

    def __del__(self) -> None:
        self.closed.append("closed")


class Lazily:
    @cached_property
    def grid(self) -> Tensor:
        return torch.arange(4.0)

    def __init__(self) -> None:
        self.seen = 0


class Net(nn.Module):
    calls: Any = 0
    table: Any = {}  # noqa: RUF012 (a class that keeps a cache)

    def __init__(self, state: Any, change: Callable[..., Any], error: BaseException | None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 4)
        self.register_buffer("seen", torch.zeros(3))
        self.state, self.change, self.error = state, change, error

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu())
        self.change(self, self.state, y)
        if self.error is not None:
            raise self.error
        return y


@lru_cache
def grid(size: int, device: Any) -> Tensor:
    return torch.arange(float(size), device=device)


def count_calls(_: Net, __: Any, y: Tensor) -> None:
    global COUNT
    COUNT = COUNT + 1
    LOG.append(y)
    CACHE[y.shape[1]] = y
    CACHE["kept"].append(y)


def on_class(net: Net, _: Any, y: Tensor) -> None:
    type(net).calls = y
    type(net).table[3] = y
    type(net).new = y  # type: ignore[attr-defined]


def replaced(net: Net, _: Any, y: Tensor) -> None:
    net.seen = net.seen + 1  # type: ignore[assignment, operator]
    net.register_buffer("made", y.detach().sum(0))
    net.extra = nn.Linear(2, 2)
    del net.error
    net.error = None


def flags(net: Net, state: Tensor, y: Tensor) -> None:
    state.requires_grad_(True)
    state.note = y  # type: ignore[attr-defined]
    net.a.weight.requires_grad_(False)
    net.b.train(not net.b.training)


def modes(_: Net, __: Any, ___: Tensor) -> None:
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)


def draws(_: Net, state: Any, __: Tensor) -> None:
    for generator in state:
        generator()
    random.random(), np.random.rand(), torch.manual_seed(3)  # noqa: NPY002 (global on purpose)


def drawing() -> list[Any]:
    return [random.Random(0).random, np.random.default_rng(0).random]


CHANGES: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "number": (int, lambda net, s, y: setattr(net, "state", s + 1)),
    "list": (list, lambda net, s, y: s.append(y)),
    "list item": (lambda: [torch.zeros(1)], lambda net, s, y: s.__setitem__(0, y)),
    "dict": (lambda: {"a": 1}, lambda net, s, y: (s.pop("a"), s.update(b=y))),
    "nested": (lambda: {"a": [({},)]}, lambda net, s, y: s["a"][0][0].update(b=y)),
    "frozen": (lambda: frozen(a=[1]), lambda net, s, y: s["a"].append(y)),
    "proxy": (lambda: types.MappingProxyType({"a": []}), lambda net, s, y: s["a"].append(y)),
    "set": (lambda: {1}, lambda net, s, y: (s.add(y), s.discard(1))),
    "deque": (lambda: deque([1], 2), lambda net, s, y: s.extend([y, y])),
    "defaultdict": (lambda: defaultdict(list), lambda net, s, y: s["a"].append(y)),
    "counter": (Counter, lambda net, s, y: s.update([tuple(y.shape)])),
    "dataclass": (Stats, lambda net, s, y: (setattr(s, "seen", y), s.shapes.append(y.shape))),  # type: ignore[func-returns-value]
    "slots": (Slots, lambda net, s, y: (setattr(s, "seen", y), setattr(s, "empty", y))),  # type: ignore[func-returns-value]
    "uncopyable": (Uncopyable, lambda net, s, y: (s.seen.append(y), setattr(s, "new", y))),  # type: ignore[func-returns-value]
    "closing": (lambda: Closing([]), lambda net, s, y: setattr(s, "seen", y)),
    "lazily": (Lazily, lambda net, s, y: s.grid),
    "weak": (weakref.WeakKeyDictionary, lambda net, s, y: s.update({net: y})),
    "array": (lambda: np.zeros(2), lambda net, s, y: s.fill(1)),
    "generators": (drawing, draws),
    "class": (int, on_class),
    "globals": (int, count_calls),
    "cache": (int, lambda net, s, y: grid(y.shape[1], y.device)),
    "replaced": (int, replaced),
    "flags": (lambda: torch.zeros(2), flags),
    "in place": (lambda: torch.zeros(2), lambda net, s, y: (s.add_(1), net.seen.add_(1))),
    "modes": (int, modes),
    "lock": (threading.Lock, lambda net, s, y: s.acquire(False) and s.release()),
}


@pytest.mark.parametrize("error", [None, ValueError("no"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("kind", CHANGES)
def test_what_a_forward_changes_is_put_back(kind: str, error: BaseException | None) -> None:
    make, change = CHANGES[kind]
    net = Net(make(), change, error).eval()
    world = (net, LOG, CACHE, Net, torch.get_default_dtype(), torch.is_grad_enabled())
    before, count = state_of(world), COUNT
    with suppress(fp.FxpruneError, KeyboardInterrupt):
        fp.prune(net, torch.randn(2, 8))
    check_unchanged(before, world)
    assert (count, torch.is_grad_enabled(), torch.get_default_dtype()) == (COUNT, *world[:3:-1])
    assert type(grid(4, torch.device("cpu"))) is Tensor


SETTERS: dict[str, Callable[[], Any]] = {
    "gradients": lambda: torch.set_grad_enabled(False),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "default device, twice": lambda: [torch.set_default_device(d) for d in ("meta", None)],  # type: ignore[func-returns-value]
    "a mode of the device": lambda: torch.device("meta").__enter__(),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "autocast dtype": lambda: torch.set_autocast_dtype("cpu", torch.float16),
    "autocast cache": lambda: torch.set_autocast_cache_enabled(False),
    "an autocast that is entered": lambda: torch.autocast("cpu").__enter__(),  # type: ignore[no-untyped-call]
    "anomalies": lambda: torch.set_anomaly_enabled(True),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
}


class Setting(nn.Module):
    def __init__(self, change: Callable[[], Any], error: BaseException | None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 4)
        self.change, self.error = change, error

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu())
        self.change()
        if self.error is not None:
            raise self.error
        return y


def settings() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.empty(1).device,
        _get_current_function_mode_stack(),  # type: ignore[no-untyped-call]
        torch.get_deterministic_debug_mode(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
    )


@pytest.fixture(params=[None, "meta"])
def default_device(request: pytest.FixtureRequest) -> Iterator[str | None]:
    torch.set_default_device(request.param)
    yield request.param
    torch.set_default_device(None)


@pytest.mark.parametrize("error", [None, ValueError("no")], ids=repr)
@pytest.mark.parametrize("what", SETTERS)
def test_what_a_forward_sets_in_the_process_is_put_back(
    what: str, error: BaseException | None, default_device: str | None
) -> None:
    with torch.device("cpu"):
        net, x = Setting(SETTERS[what], error).eval(), torch.randn(2, 8)
    before = settings()
    for verb in (fp.capture, fp.prune):
        with suppress(fp.FxpruneError):
            verb(net, x)
        assert settings() == before
    torch.set_default_device("cpu")  # it can be set anew
    torch.set_default_device(default_device)
    assert settings()[3] == before[3]


def counting(seen: list[Any]) -> Callable[..., None]:
    count = 0

    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        nonlocal count
        count += 1
        seen.append(out)

    return hook


class Watcher:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def look(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.seen.append(out)


@pytest.mark.parametrize(
    "hook",
    [
        counting([]),
        functools.partial(lambda seen, *args: seen.append(args), []),
        Watcher().look,
        lambda module, args, out, seen=[]: seen.append(out),
    ],
)
def test_what_a_hook_holds_is_put_back(hook: Callable[..., None]) -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    net[0].register_forward_hook(hook)
    before = state_of(net)
    fp.prune(net, torch.randn(2, 8))
    check_unchanged(before, net)


def test_a_hook_that_removes_itself_stays() -> None:
    net, seen = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval(), []
    handle = net[1].register_forward_hook(lambda *_: (seen.append(1), handle.remove())[1])  # type: ignore[func-returns-value, has-type]
    fp.prune(net, torch.randn(2, 8))
    assert not seen
    net(torch.randn(2, 8))
    assert seen == [1]


def test_what_lets_go_of_something_is_not_copied() -> None:
    closed: list[str] = []
    net = Net(Closing(closed), lambda net, s, y: None, None).eval()
    fp.prune(net, torch.randn(2, 8))
    assert not closed


def test_a_model_with_a_finalizer_is_captured() -> None:
    closed: list[str] = []
    kind = type("Own", (Net,), {"__del__": lambda net: closed.append("closed")})
    net = kind(0, lambda net, s, y: None, None).eval()
    assert fp.capture(net, torch.randn(2, 8)).name == "Own"
    assert not closed


def test_shared_and_circular_objects_stay_so() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3))
    net.me, net.first = [net], net[0].weight  # type: ignore[assignment]
    net[0].call = net.forward  # type: ignore[assignment]
    with stand_in(net) as twin:
        assert twin.me[0] is twin is not net  # type: ignore[index]
        assert twin.first is twin[0].weight is not net[0].weight
        assert twin.first.data_ptr() == net[0].weight.data_ptr()  # type: ignore[operator]
        assert twin[1]._flat_weights[0] is twin[1].weight_ih_l0
        assert twin[0].call.__self__ is twin


def test_own_data_shares_as_the_original_does() -> None:
    net = nn.Linear(4, 4)
    net.view = net.weight.detach()[1:]
    before = net.weight.detach().clone()
    with stand_in(net, own_data=True) as twin, torch.no_grad():
        twin.view.zero_()  # type: ignore[operator]
        assert not twin.weight[1:].any()
        assert twin.weight[0].equal(before[0])
    assert net.weight.equal(before)


def test_a_deep_structure_is_copied() -> None:
    net = nn.Identity()
    link: list[Any] = []
    net.chain = link  # type: ignore[assignment]
    for _ in range(5000):
        link.append([])
        link = link[0]
    with stand_in(net) as twin:
        assert twin.chain[0][0] is not net.chain[0][0]  # type: ignore[index]


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval()


class Then(nn.Module):
    def __init__(self, more: nn.Module) -> None:
        super().__init__()
        self.first, self.more = nn.Linear(8, 8), more

    def forward(self, x: Tensor) -> Any:
        return self.more(self.first(x))


def traced() -> Any:
    with pytest.warns(Warning, match="deprecated"):
        model = torch.jit.trace(small(), torch.randn(2, 8))  # type: ignore[no-untyped-call]
    assert model.forward  # it keeps what was asked for once
    return model


def scripted() -> Any:
    with pytest.warns(Warning, match="deprecated"):
        return torch.jit.script(small())


MADE: dict[str, Callable[[], nn.Module]] = {
    "traced": traced,
    "scripted": scripted,
    "exported": lambda: torch.export.export(small(), (torch.randn(2, 8),)).module(),
    "symbolically traced": lambda: fx.symbolic_trace(small()),
    "parallel": lambda: nn.DataParallel(small()),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", MADE)
def test_what_other_tools_made_of_a_model_stays_as_it_is(kind: str, inside: bool) -> None:
    model, x = MADE[kind](), torch.randn(2, 8)
    model = Then(model) if inside else model
    before = state_of(model)
    if kind in ("traced", "scripted"):
        with pytest.raises(fp.FxpruneError, match="scripted module") as error:
            fp.prune(model, x)
        assert "as it was before torch.jit" in error.value.do
    else:
        report = fp.prune(model, x).report
        assert not [r for r in report.remarks if r.code.startswith("verify")]
        assert "the model" in [c.against for c in report.checks]
    check_unchanged(before, model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "googlenet", "swin_t", "vit_b_16"]
)
@pytest.mark.parametrize("train", [True, False])
def test_models_of_torchvision_stay_as_they_are(name: str, train: bool) -> None:
    models = pytest.importorskip("torchvision.models")
    options = {"init_weights": False} if name == "googlenet" else {}  # its default warns
    model, x = models.get_model(name, **options).train(train), torch.randn(2, 3, 224, 224)
    before = state_of(model)
    fp.prune(model, x)
    check_unchanged(before, model)
    with suppress(fp.FxpruneError):
        fp.prune(model, x[0])
    check_unchanged(before, model)
