"""Tests of fxprune.capture.search: which axes are free, at which sizes a program computes what its model does."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import fxprune as fp
from fxprune.errors import CaptureError, InputError
from fxprune.graph.program import Program
from fxprune.verify import batches_of


class Fn(nn.Module):
    """A function of its inputs."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.function(self, x) if y is None else self.function(self, x, y)


class UNet(nn.Module):
    """Two levels down and up again; sizes must be multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 4), (4, 8), (8, 8))
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(8, o, 2, stride=2) for o in (8, 4))
        self.join = nn.ModuleList(nn.Conv2d(i, 8, 3, padding=1) for i in (16, 8))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i, conv in enumerate(self.down):
            x = conv(x).relu()
            if i < 2:
                kept.append(x)
                x = F.max_pool2d(x, 2)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), kept.pop()], 1)).relu()
        return x


class Segment(nn.Module):
    """Resizes what two strides made to the size of its input, as FCN, DeepLab and Segformer do."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        b = F.interpolate(self.b(a).relu(), size=a.shape[-2:], mode="bilinear")
        pooled = F.adaptive_avg_pool2d(a, 1)
        pooled = F.interpolate(pooled, size=a.shape[-2:], mode="bilinear")
        return F.interpolate(self.head(torch.cat([b, a + pooled], 1)), size=x.shape[-2:])


class Decoder(nn.Module):
    """A causal language model with learned positions for at most 32 tokens, and rotary ones."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(32, 16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.numbers: Tensor
        self.register_buffer("numbers", torch.arange(32)[None])

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape
        y = self.words(x) + self.places(self.numbers[:, :t])
        q, k, v = self.qkv(y).view(b, t, 3, 4, 4).permute(2, 0, 3, 1, 4)
        angle = torch.arange(t, dtype=y.dtype)[:, None] / 7
        q, k = q * angle.cos(), k * angle.cos()
        mask = torch.full((t, t), float("-inf"), dtype=y.dtype).triu(1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class Windows(nn.Module):
    """Attention in windows of 4x4, for multiples of 4, or padded to them."""

    def __init__(self, *, padded: bool) -> None:
        super().__init__()
        self.padded, self.mix = padded, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.padded:
            x = F.pad(x, (0, (4 - width % 4) % 4, 0, (4 - height % 4) % 4))
        b, c, h, w = x.shape
        y = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5)
        y = self.mix(y.reshape(-1, c, 16)).view(b, h // 4, w // 4, c, 4, 4)
        y = y.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
        return y[:, :, :height, :width] if self.padded else y


def image(*sizes: int) -> Tensor:
    return torch.randn(sizes[0], 3, *sizes[1:])


def tokens(*sizes: int) -> Tensor:
    return torch.randint(0, 50, sizes)


FREE: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], tuple[int, ...], Any]] = {
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)
        ),
        image,
        (2, 16, 16),
        (0, 2, 3),
    ),
    "a pool to one position": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        ),
        image,
        (2, 12, 12),
        (0, 2, 3),
    ),
    "a decoder": (Decoder, tokens, (2, 8), (0, 1)),
    "a resized head": (Segment, image, (2, 24, 24), (0, 2, 3)),
    "padded windows": (lambda: Windows(padded=True), image, (2, 10, 13), (0, 2, 3)),
    "an LSTM": (
        lambda: nn.LSTM(3, 4, batch_first=True),
        lambda *s: torch.randn(*s, 3),
        (2, 5),
        (0, 1),
    ),
    "an encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda *s: torch.randn(*s, 8),
        (2, 6),
        (0, 1),
    ),
    "positions that are computed": (
        lambda: Fn(lambda m, x: m.lin(x) + torch.arange(x.shape[1])[:, None], lin=nn.Linear(4, 4)),
        lambda *s: torch.randn(*s, 4),
        (2, 5),
        (0, 1),
    ),
    "half of a length": (
        lambda: Fn(lambda m, x: m.lin(x[:, : x.shape[1] // 2]).mean(1), lin=nn.Linear(4, 4)),
        lambda *s: torch.randn(*s, 4),
        (2, 9),
        (0, 1),
    ),
    "a scale of a length": (
        lambda: Fn(lambda m, x: m.lin(x) / x.shape[1] ** 0.5, lin=nn.Linear(4, 4)),
        lambda *s: torch.randn(*s, 4),
        (2, 9),
        (0, 1),
    ),
}


def prepared(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def outputs(value: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(value) if isinstance(x, Tensor)]


def as_double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def check(program: Callable[..., Any], model: nn.Module, *inputs: Tensor) -> None:
    for a, b in zip(outputs(program(*inputs)), outputs(model(*inputs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FREE)
def test_a_program_is_its_model_at_other_sizes(name: str) -> None:
    make, inputs, sizes, axes = FREE[name]
    model = prepared(make)
    program = fp.capture(model, as_double(inputs(*sizes)), dynamic_shapes="all")
    assert set(axes) <= set(next(iter(program.free_axes.values())))
    grown = [tuple(n + k for n in sizes) for k in (1, 2, 5)]
    for other in (sizes, *grown, (1, *(n + 3 * i for i, n in enumerate(sizes[1:], 1)))):
        check(program, model, as_double(inputs(*other)))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(8, 40), st.integers(8, 40))
def test_a_resized_head_holds_at_any_size(batch: int, height: int, width: int) -> None:
    model, program = _segment()
    check(program, model, image(batch, height, width).double())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 32))
def test_a_decoder_holds_up_to_its_limit(batch: int, length: int) -> None:
    model, program = _decoder()
    check(program, model, tokens(batch, length))


_known: dict[type, tuple[nn.Module, Program]] = {}


def _of(kind: type[nn.Module], example: Tensor) -> tuple[nn.Module, Program]:
    if kind not in _known:
        model = prepared(kind)
        _known[kind] = model, fp.capture(model, as_double(example), dynamic_shapes="all")
    return _known[kind]


def _segment() -> tuple[nn.Module, Program]:
    return _of(Segment, image(2, 24, 24))


def _decoder() -> tuple[nn.Module, Program]:
    return _of(Decoder, tokens(2, 8))


def test_more_positions_than_there_are_is_an_error_with_the_limit() -> None:
    _, program = _decoder()
    assert program.free_axes["x"][1].most == 32
    with pytest.raises(InputError, match=r"x.shape\[1\] <= 32[\s\S]*pass 32") as caught:
        program(tokens(2, 40))
    assert "axis 1 of input x is 40 long" in str(caught.value)


def test_a_length_that_must_be_divisible_is_free_in_steps() -> None:
    model = prepared(UNet)
    program = fp.capture(model, image(2, 16, 16).double(), dynamic_shapes="all")
    axes = program.free_axes["x"]
    assert {i: axes[i].step for i in axes} == {0: 1, 2: 4, 3: 4}
    for sizes in ((1, 4, 12), (3, 20, 8)):
        check(program, model, image(*sizes).double())
    with pytest.raises(InputError, match="pass 16 or 20, the nearest"):
        program(image(1, 18, 16).double())


def test_windows_need_multiples() -> None:
    model = prepared(lambda: Windows(padded=False))
    program = fp.capture(model, image(2, 8, 12).double(), dynamic_shapes="all")
    check(program, model, image(1, 16, 4).double())
    with pytest.raises((InputError, RuntimeError)):
        program(image(1, 10, 12).double())


def added(m: Any, x: Tensor) -> Tensor:
    return x + m.table.weight


FIXED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, str]] = {
    "a Linear over the length": (
        lambda: Fn(lambda m, x: m.lin(x.transpose(1, 2)), lin=nn.Linear(6, 4)),
        (2, 6, 4),
        1,
        "",
    ),
    "positions that are not sliced": (
        lambda: Fn(added, table=nn.Embedding(6, 4)),
        (2, 6, 4),
        1,
        r"x.shape\[1\] == 6",
    ),
    "an assertion": (
        lambda: Fn(lambda m, x: x * 2 if x.shape[1] == 6 else x / 0),
        (2, 6, 4),
        1,
        r"x.shape\[1\] == 6, at .*test_search.py",
    ),
    "a literal size": (lambda: Fn(lambda m, x: x.reshape(-1, 6 * 4)), (2, 6, 4), 1, ""),
    "features": (lambda: nn.Linear(4, 3), (2, 6, 4), 2, ""),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_network_that_needs_a_size_keeps_it(name: str) -> None:
    make, sizes, axis, why = FIXED[name]
    model = prepared(make)
    program = fp.capture(model, torch.randn(sizes).double(), dynamic_shapes="all")
    free = program.free_axes
    (given_name,) = free
    assert 0 in free[given_name]
    assert axis not in free[given_name]
    check(program, model, torch.randn(5, *sizes[1:]).double())
    other = torch.randn([n + 1 if i == axis else n for i, n in enumerate(sizes)]).double()
    with pytest.raises(InputError) as caught:
        program(other)
    assert re.search(why, str(caught.value))


def test_a_threshold_far_from_the_example_is_seen() -> None:
    """Neither of two runs comes near it; the comparison itself does."""
    model = Fn(lambda m, x: x.relu() if x.shape[1] < 5000 else x.tanh())
    program = fp.capture(model, torch.randn(2, 6), dynamic_shapes="all")
    assert program.free_axes["x"][1].most == 4999
    check(program, model, torch.randn(1, 4999))
    with pytest.raises(InputError, match="< 5000"):
        program(torch.randn(1, 5000))


def test_a_comparison_of_a_plain_number_is_not_trusted() -> None:
    """Nobody sees what becomes of `int(n)` but further runs."""
    model = Fn(lambda m, x: x.relu() if len(range(int(x.shape[1]))) < 300 else x.tanh())
    program = fp.capture(model, torch.randn(2, 150), dynamic_shapes="all")
    for n in (7, 299, 301, 5000):
        x = torch.randn(1, n)
        try:
            check(program, model, x)
        except InputError:
            continue


def test_lengths_that_must_be_equal_are_one_size() -> None:
    model = Fn(lambda m, x, y: m.lin(x) * y[..., None], lin=nn.Linear(4, 4)).double()
    program = fp.capture(
        model, (torch.randn(2, 6, 4).double(), torch.randn(2, 6).double()), dynamic_shapes="all"
    )
    free = program.free_axes
    assert free["x"][1].size == free["y"][1].size
    assert free["x"][0].size == free["y"][0].size
    check(program, model, torch.randn(3, 9, 4).double(), torch.randn(3, 9).double())
    with pytest.raises(InputError, match="one free size"):
        program(torch.randn(3, 9, 4).double(), torch.randn(3, 8).double())


def test_lengths_of_their_own_stay_so() -> None:
    model = Fn(lambda m, x, y: m.lin(x) @ m.lin(y).mT, lin=nn.Linear(4, 4)).double()
    program = fp.capture(
        model, (torch.randn(2, 6, 4).double(), torch.randn(2, 6, 4).double()), dynamic_shapes="all"
    )
    assert program.free_axes["x"][1].size != program.free_axes["y"][1].size
    check(program, model, torch.randn(3, 9, 4).double(), torch.randn(3, 5, 4).double())


def test_only_what_is_asked_for_is_free() -> None:
    x = torch.randn(2, 6, 4)
    model = Fn(lambda m, x: m.lin(x), lin=nn.Linear(4, 4))

    def axes(shapes: Any) -> dict[str, list[int]]:
        free = fp.capture(model, x, dynamic_shapes=shapes).free_axes
        return {name: sorted(of) for name, of in free.items()}

    assert axes({"x": {1: Dim.AUTO}}) == {"x": [1]}
    assert axes({"x": {0: Dim.STATIC, 1: Dim("n")}}) == {"x": [1]}
    assert axes(((Dim.AUTO, None, None),)) == {"x": [0]}
    assert axes({"x": {0: Dim.AUTO, 2: Dim.AUTO}}) == {"x": [0]}
    assert axes({}) == {}
    assert fp.capture(model, x, dynamic_batch=False).free_axes == {}


def test_the_bounds_of_a_dim_hold() -> None:
    model = Fn(lambda m, x: m.lin(x), lin=nn.Linear(4, 4))
    program = fp.capture(
        model, torch.randn(2, 6, 4), dynamic_shapes={"x": {1: Dim("n", min=4, max=9)}}
    )
    axis = program.free_axes["x"][1]
    assert (axis.least, axis.most) == (4, 9)
    check(program, model, torch.randn(2, 9, 4))
    for n in (3, 10):
        with pytest.raises(InputError, match=r"x.shape\[1\] [<>]= "):
            program(torch.randn(2, n, 4))


def test_an_axis_that_has_to_be_free_and_cannot_is_an_error() -> None:
    with pytest.raises(CaptureError, match="has to be free"):
        fp.capture(nn.Linear(4, 3), torch.randn(2, 4), dynamic_shapes={"input": {1: Dim("n")}})


@pytest.mark.parametrize("make", [UNet, Segment])
def test_sizes_stay_free_whatever_is_done_with_a_program(
    make: type[nn.Module], tmp_path: Path
) -> None:
    model = prepared(make)
    x = image(2, 16, 16).double()
    outcome = fp.prune(model, x, keep=0.6, metric="params", dynamic_shapes="all")
    program = fp.run(outcome.program, None, "fold-batchnorm | dead-code").program
    assert program.free_axes == outcome.program.free_axes
    fp.save(program, tmp_path / "saved")
    loaded = fp.load(tmp_path / "saved")
    assert loaded.free_axes == program.free_axes
    x, bad = image(1, 24, 20).double(), image(1, 24, 18).double()
    exported = torch.export.export(
        program.module,
        (image(2, 16, 16).double(),),
        dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},),
        strict=False,
    )
    wanted = outcome.program(x)
    for found in (
        program.module,
        loaded.module.double(),
        copy.deepcopy(program.module),
        pickle.loads(pickle.dumps(program.module)),
        torch.compile(program.module, backend="eager"),
        exported.module(),
    ):
        torch.testing.assert_close(found(x), wanted, rtol=1e-10, atol=1e-10)
        if make is UNet:
            with pytest.raises(Exception, match=r"24|18|Guard|guard|hold"):
                found(bad)


def test_a_program_is_captured_again_with_the_same_axes() -> None:
    program = fp.capture(Segment().eval(), image(2, 24, 24), dynamic_shapes="all")
    again = fp.capture(program.module, program.args, dynamic_shapes="all")
    assert {k: sorted(v) for k, v in again.free_axes.items()} == {
        k: sorted(v) for k, v in program.free_axes.items()
    }


def test_verification_tries_another_length_of_every_axis() -> None:
    program = fp.capture(UNet().eval(), image(2, 16, 16), dynamic_shapes="all")
    shapes = [tuple(b.args[0].shape) for b in batches_of(program, 0)]
    assert shapes == [(2, 3, 16, 16), (3, 3, 12, 12)]
