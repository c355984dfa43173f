"""What the error of a failed capture says, and what it advises."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fxprune as fp
from fxprune.capture.failure import to_capture_error
from fxprune.capture.untraced import untraced_seen
from fxprune.errors import CaptureError
from fxprune.graph.program import source_line

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


class Cast(nn.Module):
    """Takes something besides tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, x: torch.Tensor, to: Any) -> torch.Tensor:
        return self.inner(x).to(to if isinstance(to, torch.dtype) else x)


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


def sum_of_squares(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum()


def slope(x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(x.square().sum(), x, create_graph=True)[0]


def backward(x: torch.Tensor) -> torch.Tensor:
    x.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    return x


def set_data(x: torch.Tensor) -> torch.Tensor:
    x.data = x.data / 2
    return x


def failure(model: nn.Module, args: Inputs) -> CaptureError:
    with pytest.raises(CaptureError) as error:
        fp.capture(model.eval(), args)
    return error.value


def of_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return small()


def sparse() -> nn.Module:
    model = small()
    model[0].weight = nn.Parameter(torch.eye(6, 4).to_sparse(), requires_grad=False)
    return model


def quantised() -> nn.Module:
    with pytest.warns(Warning, match="deprecated"):
        return torch.ao.quantization.quantize_dynamic(small())  # type: ignore[no-untyped-call]


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
        (Cast, (X, torch.float64), r"input args[1] is a dtype", "a module around the model"),
        (Cast, (X, [Path()]), r"input args[1][0] is a P", "a module around the model"),
        (of_inference_mode, (X,), "inference mode", r"outside torch\.inference_mode\(\)"),
        (lambda: Then(slope), (X,), "computes gradients inside forward", "outside of what is captured"),
        (lambda: Then(backward), (X,), "computes gradients inside forward", "outside of what is captured"),
        (lambda: Then(torch.func.grad(sum_of_squares)), (X,), "computes gradients inside forward", "outside of what"),
        (lambda: Then(set_data), (X,), "replaces the data of a tensor", r"w\.copy_\(new\)"),
        (lambda: nn.LazyLinear(3), (X,), "lazy modules", "call the model once"),
        (sparse, (X,), "0.weight is sparse", "to_dense"),
        (quantised, (X,), "quantised layers", "prune the model first"),
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


@pytest.mark.parametrize("more", [slope, backward, set_data])
def test_the_users_own_line_is_named(more: Callable[[torch.Tensor], torch.Tensor]) -> None:
    code = more.__code__
    where = f"Then at {code.co_filename}:{code.co_firstlineno + 1} in {code.co_name}"
    assert failure(Then(more), (X,)).where == where


def test_gradients_can_be_computed_while_another_thread_captures() -> None:
    x = torch.ones(2, requires_grad=True)
    with untraced_seen("Net"):
        thread = threading.Thread(target=lambda: (x * x).sum().backward())  # type: ignore[no-untyped-call]
        thread.start()
        thread.join()
    assert x.grad is not None


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


class Late(nn.Module):
    """Makes something at its first call."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.inner, self.make = small(), make

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "late"):
            self.late = self.make()
        return self.inner(x) + (self.late(x).sum() if callable(self.late) else self.late)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: nn.Buffer(torch.ones(3)), "makes a buffer"),
        (lambda: nn.Parameter(torch.ones(3)), "makes a parameter"),
        (lambda: nn.Linear(4, 2), "makes a parameter"),
    ],
)
def test_what_is_made_at_the_first_call_is_refused(make: Callable[[], Any], what: str) -> None:
    model = Late(make)
    error = failure(model, (X,))
    assert what in error.what
    assert "late" in error.where
    assert not hasattr(model, "late")
    model(X)
    assert torch.equal(fp.capture(model, X).module(X), model(X))


def test_code_that_torch_has_written_is_no_place() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.inner(x)
            return torch.cond(y.sum() > 0, torch.relu, torch.sigmoid, (y,))

    (node,) = (n for n in fp.capture(Either(), X).nodes if n.name == "cond")
    assert Path(source_line(node).partition(":")[0]).name == Path(__file__).name
