"""What the error of a failed capture says, and what it advises."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fxprune as fp
from fxprune.capture.failure import to_capture_error
from fxprune.errors import CaptureError

Inputs = tuple[Any, ...]


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@dataclass
class Boxes:
    scores: torch.Tensor


class Then(nn.Module):
    """A small network, with more done to its result."""

    def __init__(self, more: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.more = small(), more

    def forward(self, x: torch.Tensor) -> Any:
        return self.more(self.inner(x))


class Packed(nn.Module):
    """A recurrent layer over sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        return pad_packed_sequence(self.cell(packed)[0], batch_first=True)[0]


def add_text(x: Any) -> Any:
    return x + "text"


def failure(model: nn.Module, args: Inputs) -> CaptureError:
    with pytest.raises(CaptureError) as error:
        fp.capture(model.eval(), args)
    return error.value


def of_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return small()


def scripted() -> nn.Module:
    with pytest.warns(Warning, match="deprecated"):
        return torch.jit.script(small())


X = torch.randn(2, 4)


@pytest.mark.parametrize(
    ("make", "args", "what", "do"),
    [
        (small, (X, X), "does not accept these inputs", r"signature of the model's forward: \(input\)"),
        (lambda: Then(add_text), (X,), "cannot be run", "fp.capture_partial"),
        (Packed, (torch.randn(2, 5, 4), torch.tensor([5, 3])), "packed sequence", "padded tensor"),
        (lambda: Then(Boxes), (X,), "type that torch.export does not know", "register_dataclass"),
        (of_inference_mode, (X,), "inference mode", r"outside torch\.inference_mode\(\)"),
        (scripted, (X,), "is a scripted module", r"before torch\.jit\.script"),
        (lambda: Then(scripted()), (X,), "has a scripted module, more", "before torch.jit.script"),
    ],
)  # fmt: skip
def test_the_advice_fits_the_failure(
    capfd: pytest.CaptureFixture[str],
    make: Callable[[], nn.Module],
    args: Inputs,
    what: str,
    do: str,
) -> None:
    error = failure(make(), args)
    assert what in error.what
    assert re.search(do, error.do)
    assert capfd.readouterr() == ("", "")  # nothing of torch's own is printed


def test_inputs_that_do_not_fit_blame_no_line_of_python() -> None:
    assert failure(small(), (X, X)).where == "Sequential"


@pytest.mark.parametrize("wrapper", [nn.DataParallel, DistributedDataParallel])
def test_the_network_inside_a_wrapper_is_named(wrapper: type[nn.Module]) -> None:
    model = wrapper.__new__(wrapper)
    nn.Module.__init__(model)
    error = to_capture_error(model, RuntimeError("no"), ((X,), {}))
    assert "model.module" in error.do


def test_a_registered_dataclass_is_an_output() -> None:
    torch.export.register_dataclass(Boxes)
    program = fp.capture(model := Then(Boxes).eval(), X)
    assert torch.equal(program.module(X).scores, model(X).scores)


def test_a_cumulative_average_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)).train()
    with pytest.raises(CaptureError, match=r"momentum=None.*1 \(BatchNorm2d\)"):
        fp.capture(model, torch.randn(2, 3, 5, 5))
    assert fp.capture(model.eval(), torch.randn(2, 3, 5, 5)).free_batch
