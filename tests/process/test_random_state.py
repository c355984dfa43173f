"""Tests of fxprune.process.random_state, and that the library's verbs leave every global generator as it was."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.process.random_state import random_state_kept, seeded


class Drawing(nn.Module):
    """Draws from every generator when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.drop(self.first(x)))
        return y + torch.rand_like(y)


class Parts(nn.Module):
    """Exports only in parts; between them it draws from Python's and numpy's generators."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        shift = random.random() + float(np.random.rand())  # noqa: NPY002
        return y + shift if float(y.sum()) < 1e9 else y


def draws() -> list[object]:
    """The next number of each generator."""
    found = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return [*found, *(float(torch.rand((), device=f"cuda:{i}")) for i in cuda)]


def verify(model: nn.Module, x: Tensor) -> None:
    program = fp.capture(model, x)
    plan = fp.plan(program, {"first.weight": (0, [1, 2])})
    fp.verify(program, plan, fp.shrink(program, plan))


VERBS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "prune": fp.prune,
    "run": lambda model, x: fp.run(model, x, "drop-identity | dead-code"),
    "verify": verify,
    "prune in parts": lambda model, x: fp.prune(fp.capture_partial(Parts(model).eval(), (x,))),
}


def check_untouched(verb: str, device: str, *, training: bool) -> None:
    model, x = Drawing().train(training).to(device), torch.randn(3, 4, device=device)
    with random_state_kept():
        wanted = draws()
    with random_state_kept():
        VERBS[verb](model, x)
        assert draws() == wanted


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("verb", VERBS)
def test_generators_are_left_as_they_were(verb: str, training: bool) -> None:
    check_untouched(verb, "cpu", training=training)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("verb", ["prune", "run", "verify"])
def test_generators_of_cuda_are_left_as_they_were(verb: str) -> None:
    check_untouched(verb, "cuda", training=True)


def test_a_seed_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    found = []
    for _ in range(2):
        draws()
        with seeded(3):
            found.append(draws())
    assert found[0] == found[1]


def test_generators_are_put_back_after_an_error() -> None:
    with random_state_kept():
        wanted = draws()
    with random_state_kept():
        with pytest.raises(ZeroDivisionError), seeded(0):
            raise ZeroDivisionError
        assert draws() == wanted


def test_the_first_use_leaves_the_generators_as_they_were() -> None:
    code = """
import random, numpy, torch, fxprune as fp
before = random.getstate(), numpy.random.get_state()[1].tobytes()
model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.ones(2, 4)
torch_before = torch.get_rng_state()
fp.prune(model, x, keep=0.5), fp.run(model, x, "insert-gates{scope=unit}"), fp.training
assert (random.getstate(), numpy.random.get_state()[1].tobytes()) == before
assert torch.equal(torch.get_rng_state(), torch_before)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
