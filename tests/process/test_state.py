"""Tests of fxprune.process.state and fxprune.process.lock: modes, threads and processes around the verbs."""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fxprune as fp
from fxprune.errors import CaptureError
from fxprune.graph.program import module_path
from fxprune.process.state import callers_device, plain_modes


class Cat(nn.Module):
    """A network that makes a tensor where torch makes them by default."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[0], 4)
        return self.b(torch.cat((self.a(x).relu(), ones), 1))


class Branch(Cat):
    """A network that has to be exported: a free batch as a number in Python."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).eval()


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "meta": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": default_dtype,
    "deterministic": deterministic,
}


def modes() -> tuple[Any, ...]:
    return (
        torch.get_default_device(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.backends.mha.get_fastpath_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(),
    )


def prune(model: nn.Module, x: Tensor) -> Any:
    return fp.prune(model, x)


def prune_by_loss(model: nn.Module, x: Tensor) -> Any:
    how = fp.Importance("taylor", loss=lambda m: m(x).square().mean())
    return fp.prune(model, x, importance=how)


def run(model: nn.Module, x: Tensor) -> Any:
    return fp.run(model, x, "fold-batchnorm")


@pytest.mark.parametrize("verb", [prune, prune_by_loss, run])
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_caller_change_nothing(mode: str, verb: Callable[..., Any]) -> None:
    model, x = network(), torch.randn(2, 8)
    wanted = verb(model, x).program(x)
    with MODES[mode]():
        before = modes()
        found = verb(model, x).program
        assert modes() == before
    assert torch.allclose(found(x), wanted)
    assert not any(p.is_inference() for p in found.module.parameters())


def test_a_model_that_needs_another_default_device_is_refused() -> None:
    model, x = Cat(), torch.randn(2, 8)
    with torch.device("meta"), pytest.raises(CaptureError, match="meta"):
        fp.capture(model, x)


def test_a_model_relies_on_the_default_device_of_the_caller() -> None:
    with torch.device("meta"):
        model, x = Cat(), torch.randn(2, 8)
        assert fp.capture(model, x)(x).is_meta


def test_the_callers_device_is_known_inside() -> None:
    with torch.device("meta"), plain_modes(), plain_modes():
        assert torch.ones(1).device.type == "cpu"
        with callers_device():
            assert torch.ones(1).is_meta
    assert torch.ones(1).device.type == "cpu"


@pytest.mark.parametrize("kind", [network, Cat, Branch])
def test_several_threads_prune_at_once(kind: Callable[[], nn.Module]) -> None:
    x = torch.randn(2, 8)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: fp.prune(kind().eval(), x), range(6)))
    assert all(c.ok for outcome in outcomes for c in outcome.report.checks)


@pytest.mark.parametrize("kind", [network, Cat, Branch])
def test_a_model_runs_while_another_thread_captures_it(kind: Callable[[], nn.Module]) -> None:
    model, x, stop, wrong = kind().eval(), torch.randn(2, 8), threading.Event(), []
    wanted = model(x).detach()

    def work() -> None:
        while not stop.is_set():
            wrong.extend([1] * (not torch.allclose(model(x), wanted)))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        paths = [{module_path(n) for n in fp.capture(model, x).nodes} for _ in range(5)]
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert all(p == paths[0] for p in paths)


def test_two_threads_prune_one_model() -> None:
    model, x = network(), torch.randn(2, 8)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: fp.prune(model, x), range(2))
    assert torch.equal(one.program(x), two.program(x))


def _prune_here(_: int = 0) -> bool:
    return all(c.ok for c in fp.prune(network(), torch.randn(2, 8)).report.checks)


def _run_forked() -> int:
    child = os.fork()
    if not child:
        os._exit(0 if _prune_here() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_process_prunes_while_a_thread_holds_the_lock() -> None:
    _prune_here()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        from fxprune.process.lock import alone

        with alone():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert _run_forked() == 0
    finally:
        done.set()
        thread.join()


def test_a_spawned_process_prunes() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_prune_here, [0]) == [True]


class Pruned(torch.utils.data.Dataset[bool]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> bool:
        return _prune_here()


def test_a_worker_of_a_data_loader_prunes() -> None:
    assert all(batch.all() for batch in DataLoader(Pruned(), num_workers=1))


@pytest.mark.parametrize("flags", [["-O"], ["-W", "error"], []])
def test_options_of_python_change_nothing(flags: list[str]) -> None:
    code = (
        "import torch, fxprune as fp\n"
        "from torch import nn\n"
        "m = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))\n"
        "print([c.ok for c in fp.prune(m, torch.randn(2, 8)).report.checks])\n"  # regions, whole, model, gradients
    )
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "[True, True, True, True]\n", done.stderr
