"""Tests of fxprune.capture.generalise: it says what torch.export says, or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

from fxprune.capture.dynamic import asked_for
from fxprune.capture.export import capture
from fxprune.capture.generalise import trace
from fxprune.capture.record import UnsupportedError
from fxprune.errors import InputError
from fxprune.graph.inputs import FIXED, GUARDS
from fxprune.graph.program import Program
from fxprune.torch_private import pytree_specs, static_size


class Fn(nn.Module):
    """A convolution whose output goes through a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.function = function

    def forward(self, x: Tensor, *, more: Any = None) -> Any:
        return self.function(self.conv(x))


class Writes(nn.Module):
    """Keeps something of its input."""

    def __init__(self, value: Callable[[Tensor], Any], *, buffer: bool = False) -> None:
        super().__init__()
        self.value = value
        if buffer:
            self.register_buffer("kept", torch.zeros(3))
        else:
            self.kept = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.value(x)
        return x + 1


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Two(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Any]:
        return {"y": (x * scale).relu(), "parts": x.chunk(2, 1), "none": None}


class Sizes(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + torch.tensor(float(len(x))), y


class Sums(nn.Module):
    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor) -> Tensor:
        return a + b + c + d + e


class Biased(nn.Module):
    """Attention whose mask is trained: its kernel depends on whether there are gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 2, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.scaled_dot_product_attention(x, x, x, self.bias)
        return y.transpose(1, 2).contiguous().flatten(2)


class Masked(nn.Module):
    """Attention with a mask from another input."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(
            x, x, x, attn_mask=mask.unsqueeze(1).unsqueeze(1)
        )


class Picked(nn.Module):
    """Reads rows of its second input by the numbers of the first one's rows, which any longer one bears."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0])
        return x + table[rows.unsqueeze(1), torch.arange(8)].unsqueeze(1).unsqueeze(1)


class Ruled(nn.Module):
    """Spells the length of its second input, which its first one has nothing to do with."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x * table.reshape(table.shape[0] * 4).sum()


class Optional(nn.Module):
    """Has inputs that are constants."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, times: int = 1, *, mean: bool = False
    ) -> Any:
        y = x * times if mask is None else x * mask
        return (y.mean(1) if mean else y, None)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        y = y.reshape(b * 2, n, c // 2).view(b, 2, n, c // 2)
        return self.out(y.transpose(1, 2).reshape(b, n, c)) + torch.zeros(b, n, c)


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)
    )


COVERED: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]] = {
    "convolutions": lambda: (norm().eval(), (image(),), {}),
    "train mode": lambda: (norm().train(), (image(),), {}),
    "a batch of one": lambda: (norm().eval(), (image()[:1],), {}),
    "attention": lambda: (Attention().eval(), (torch.randn(2, 5, 12),), {}),
    "torch's attention": lambda: (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(),
        (torch.randn(3, 5, 8),),
        {},
    ),
    "lists and None": lambda: (Two(), (image(), torch.randn(8)), {}),
    "keywords": lambda: (Two(), (image(),), {"scale": torch.randn(8)}),
    "weight norm": lambda: (
        nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3))),
        (image(),),
        {},
    ),
    "channels last": lambda: (norm().to(memory_format=torch.channels_last), (image(),), {}),
    "in place": lambda: (Fn(lambda x: x.add_(1).mul_(x.sigmoid())), (image(),), {}),
    "made, then written": lambda: (Fn(lambda x: x + zeros(x).add_(1)), (image(),), {}),
    "flatten": lambda: (Fn(lambda x: x.flatten(1)), (image(),), {}),
    "meta": lambda: (norm().to("meta").eval(), (image(),), {}),
    "tensors under two names": lambda: (Tied(), (torch.randn(2, 4),), {}),
    "two inputs of one batch": lambda: (Two(), (image(), torch.randn(2, 1, 1, 1)), {}),
    "an LSTM": lambda: (
        nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True),
        (torch.randn(2, 5, 3),),
        {},
    ),
    "a GRU": lambda: (nn.GRU(3, 4, batch_first=True).eval(), (torch.randn(2, 5, 3),), {}),
    "an RNN": lambda: (nn.RNN(3, 4, batch_first=True), (torch.randn(2, 5, 3),), {}),
    "a mask": lambda: (Masked(), (torch.randn(2, 2, 5, 4), torch.ones(2, 5).bool()), {}),
    "a trained mask": lambda: (Biased(), (torch.randn(2, 2, 5, 4),), {}),
    "rows of another input": lambda: (Picked(), (image(), torch.randn(2, 8)), {}),
    "a module made while running": lambda: (Fn(lambda x: nn.GELU()(x)), (image(),), {}),
    "an order, turned round": lambda: (Fn(turned), (image(),), {}),
    "a constant": lambda: (Fn(lambda x: x + torch.tensor([1.0])), (image(),), {}),
    "constants, one of them written": lambda: (
        Fn(lambda x: x * torch.tensor([2, 3])[1] + torch.tensor([[0.5]]).add_(1)),
        (image(),),
        {},
    ),
    "constants among the inputs": lambda: (Optional(), (image(), None, 2), {}),
    "constants among the keywords": lambda: (Optional(), (image(),), {"mask": None, "times": 3}),
    "several results": lambda: (Fn(lambda x: x.flatten(1).topk(2)), (image(),), {}),
    "a branch on gradients": lambda: (
        Fn(lambda x: x.relu() if x.requires_grad else x.tanh()),
        (image(),),
        {},
    ),
    "a length of its own": lambda: (Ruled(), (image(), torch.randn(2, 4)), {}),
    "one module under two names": lambda: (
        nn.Sequential(conv := nn.Conv2d(3, 3, 1), relu := nn.ReLU(), conv, relu),
        (image(),),
        {},
    ),
    "five inputs of one batch": lambda: (Sums(), tuple(image() for _ in range(5)), {}),
}

LEFT_TO_EXPORT: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]] = {
    "without gradients": lambda: (Fn(torch.no_grad()(lambda x: x * 2)), (image(),), {}),
    "autocast": lambda: (Fn(autocast), (image(),), {}),
    "a remainder of the batch": lambda: (Fn(lambda x: x * (len(x) % 3)), (image(),), {}),
    "a quotient of the batch": lambda: (Fn(lambda x: x * (len(x) // 50)), (image(),), {}),
    "a branch on the batch": lambda: (
        Fn(lambda x: x.relu() if len(x) > 50 else x.tanh()),
        (image(),),
        {},
    ),
    "parts of the batch": lambda: (Fn(lambda x: x.chunk(2)), (image(),), {}),
    "a constant of the batch": lambda: (
        Fn(lambda x: x + torch.tensor([1.0, len(x)]).sum()),
        (image(),),
        {},
    ),
    "the value of a constant": lambda: (
        Fn(lambda x: x * torch.tensor([1.0, 2.0]).sum().item()),
        (image(),),
        {},
    ),
    "a constant of a batch of its own": lambda: (
        Sizes(),
        (image(), torch.randn(2, 4)),
        {},
    ),
    "a buffer": lambda: (Writes(lambda x: x.sum((0, 1, 2))[:3], buffer=True), (image(),), {}),
    "a keyword that is no position": lambda: (Fn(torch.relu), (image(),), {"more": 3}),
    "inputs in a list": lambda: (Fn(torch.relu), ([image()],), {}),
    "a number among the outputs": lambda: (Fn(lambda x: (x, 3)), (image(),), {}),
    "one input twice": lambda: (Two(), (x := image(), x), {}),
    "a graph": lambda: (fx.symbolic_trace(norm().eval()), (image(),), {}),
    "written behind torch's back": lambda: (
        Fn(lambda x: x + zeros(x).add_(1).data),
        (image(),),
        {},
    ),
    "a value": lambda: (Fn(lambda x: x if x.sum() > 0 else -x), (image(),), {}),
}


def angles(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float32).cos()


def turned(x: Tensor) -> Tensor:
    order = x.mean((0, 2, 3)).argsort()
    back = torch.empty_like(order)
    back[order] = torch.arange(4)
    return x.index_select(1, order).index_select(1, back)


def zeros(x: Tensor) -> Tensor:
    return torch.zeros(*x.shape)


def autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return x @ x.mT


def number(n: Any) -> Any:
    known = n if isinstance(n, int) else static_size(n)
    if known is not None:
        return known
    text = re.sub(r"s\d+", "s", str(n))
    least = re.fullmatch(r"Min\((\d+), \1\*s\)", text)  # a stride, for a batch of 0 as well
    return int(least[1]) if least else text


def seen(value: Any) -> Any:
    if value is None or isinstance(value, int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [seen(v) for v in value]
    shape = [number(n) for n in value.shape]
    return (
        shape,
        [number(n) for n in value.stride()],
        value.dtype,
        value.device,
        value.requires_grad,
    )


def rows(program: Program) -> list[Any]:
    """What the nodes are, a computed size by its formula wherever it was computed."""
    found: list[Any] = []
    of: dict[fx.Node, Any] = {}
    for node in program.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            of[node] = number(value)
            continue
        of[node] = len(found)
        args = pytree.tree_map_only(fx.Node, of.__getitem__, (node.args, node.kwargs))
        meta = {k: v for k, v in node.meta.items() if k not in ("val", GUARDS, FIXED)}
        found.append((node.op, node.name, str(node.target), args, meta, seen(value)))
    return found


def batch(*inputs: Any) -> tuple[Any, ...]:
    """Axis 0 of those that are as long as the first one."""
    tensors = [x for x in inputs if isinstance(x, Tensor) and x.ndim]
    return tuple(
        {0: Dim.AUTO} if isinstance(x, Tensor) and x.ndim and len(x) == len(tensors[0]) else None
        for x in inputs
    )


def exported(monkeypatch: pytest.MonkeyPatch, *inputs: Any, shapes: Any = None) -> Program:
    """The program that torch.export makes."""

    def refuse(*_: Any) -> None:
        raise UnsupportedError

    with monkeypatch.context() as patch:
        patch.setattr(import_module("fxprune.capture.export"), "trace", refuse)
        return capture(*inputs, dynamic_shapes=shapes)


@pytest.mark.parametrize("name", COVERED)
def test_the_program_is_that_of_an_export(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, args, kwargs = COVERED[name]()
    shapes = batch(*args, *kwargs.values())
    expected = exported(monkeypatch, model, args, kwargs, shapes=shapes)
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", None)
        program = capture(model, args, kwargs, dynamic_shapes=shapes)
    assert rows(program) == rows(expected)
    assert str(pytree_specs(program.graph)) == str(pytree_specs(expected.graph))
    assert program.remarks == expected.remarks
    assert program.free_batch == expected.free_batch


def traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
    """Records a network, whose axes are all tried."""
    kwargs = kwargs or {}
    trace(model, args, kwargs, asked_for(model, args, kwargs, None, free=True))


@pytest.mark.parametrize("name", LEFT_TO_EXPORT)
def test_what_is_not_covered_is_not_guessed(name: str) -> None:
    model, args, kwargs = LEFT_TO_EXPORT[name]()
    with pytest.raises(Exception) as caught:  # noqa: PT011
        traced(model, args, kwargs)
    assert isinstance(caught.value, UnsupportedError) or name == "a value"


def test_a_full_slice_of_the_batch_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export cannot tell that it is the whole axis; nothing else differs."""
    model, x = Fn(lambda x: x[:, 1:] + x[:, :1]).eval(), image()
    one = capture(model, x, dynamic_shapes=batch(x))
    two = exported(monkeypatch, model, x, shapes=batch(x))
    assert len(one.graph.nodes) < len(two.graph.nodes)
    y = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(one(y), two(y), rtol=0, atol=0)


def test_a_region_without_gradients_in_which_none_would_flow_is_covered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Export makes a submodule of it; put back, its nodes have other names, and nothing else differs."""
    model, x = Fn(lambda y: y + torch.no_grad()(angles)(y.shape[-1])).eval(), image()
    expected = rows(exported(monkeypatch, model, x, shapes=batch(x)))
    traced(model, (x,))
    found = rows(capture(model, x, dynamic_shapes=batch(x)))
    assert [(r[0], *r[2:]) for r in found] == [(r[0], *r[2:]) for r in expected]


def test_a_recurrent_module_follows_its_weights_afterwards() -> None:
    """Its own lists of them name what the record ran on, and what was there before."""
    model, x = nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)
    before, lists = model(x)[0], dict(vars(model))
    program = capture(model, x)
    assert all(vars(model)[name] is value for name, value in lists.items())
    torch.testing.assert_close(model(x)[0], before, rtol=0, atol=0)
    torch.testing.assert_close(program(x)[0], before, rtol=0, atol=0)
    model.weight_hh_l0 = nn.Parameter(torch.zeros(16, 4))
    assert not torch.equal(model(x)[0], before)


def test_a_constant_keeps_its_value() -> None:
    """It is copied each time, so what is written into the copy is not there at the next call."""
    model, x = Fn(lambda x: x + torch.tensor([0.5]).add_(1)).eval(), image()
    program = capture(model, x)
    assert program.module.state_dict().keys() == model.state_dict().keys()
    for _ in range(2):
        torch.testing.assert_close(program(x), model.conv(x) + 1.5, rtol=0, atol=0)


def test_the_name_of_a_constant_may_be_taken() -> None:
    model = Fn(lambda x: x + torch.tensor([1.0]))
    model.register_buffer("lifted_tensor_0", torch.ones(1))
    with pytest.raises(UnsupportedError, match="already in use"):
        traced(model, (image(),))
    capture(model, image())


@pytest.mark.parametrize("write", [len, lambda x: x * 2, lambda x: x.shape])
def test_attributes_that_forward_writes_are_as_before_in_each_run(
    write: Callable[[Tensor], Any],
) -> None:
    model = Writes(write)
    traced(model, (image(),))
    program = capture(model := Writes(write), image())
    assert model.kept is None
    assert [(r.code, r.where) for r in program.remarks] == [
        ("capture.attribute-changed", "Writes, attribute kept")
    ]
    assert set(program.free_axes["x"]) == {0, 1, 2, 3}


class Anchored(nn.Module):
    """Keeps what it makes for a size of map until the size changes; its strides are no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.strides = torch.tensor([2.0, 4.0])
        self.shape: Any = None
        self.anchors = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.shape != y.shape:
            first, _ = self.strides
            h, w = y.shape[-2:]
            self.anchors = torch.full((h * w,), first) * torch.arange(h * w)
            self.shape = y.shape
        return y.flatten(2) * self.anchors + self.strides[:, None, None].sum()


def test_what_is_kept_for_a_size_follows_another_size() -> None:
    model = Anchored().eval()
    program = capture(model, image())
    assert set(program.free_axes["x"]) == {0, 2, 3}
    assert {r.where.rpartition(".")[2] for r in program.remarks} == {
        "Anchored, attribute anchors",
        "Anchored, attribute shape",
    }
    assert model.shape is None
    for size in ((1, 3, 8, 8), (3, 3, 11, 6)):
        x = torch.randn(size)
        torch.testing.assert_close(program(x), model(x), rtol=0, atol=0)


def test_what_is_kept_already_holds_for_its_size() -> None:
    model, x = Anchored().eval(), image()
    expected = model(x)
    program = capture(model, x)
    torch.testing.assert_close(program(x), expected, rtol=0, atol=0)
    assert set(program.free_axes.get("x", {})) <= {0}
    with pytest.raises(InputError):
        program(torch.randn(2, 3, 11, 6))


def test_a_constant_that_forward_writes_to_is_left_to_export() -> None:
    """The record would write to the copy of the program at every call."""
    model = Fn(lambda x: x)
    model.kept = torch.zeros(3)
    model.conv.register_forward_hook(lambda _m, _a, y: y + model.kept.add_(y.detach().sum()).sum())
    with pytest.raises(UnsupportedError, match="writes to a constant"):
        traced(model, (image(),))


def test_a_run_that_is_meant_to_fail_prints_nothing(caplog: pytest.LogCaptureFixture) -> None:
    capture(Two(), (image(), torch.randn(2, 1, 1, 1)))
    assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
