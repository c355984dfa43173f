"""Tests of fxprune.capture.dynamic: what a caller may say of the axes of the inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from fxprune.capture.dynamic import asked_for, free_sizes
from fxprune.errors import CaptureError


class Net(nn.Module):
    def forward(self, x: Tensor, more: list[Tensor] | None = None, *, scale: float = 1.0) -> Tensor:
        return x if more is None else x + more[0]


X, Y, Z = torch.ones(2, 3), torch.ones(4, 5), torch.ones(1, 6)


def asked(shapes: Any, *, free: bool = True) -> Any:
    return asked_for(Net(), (X, [Y, Z]), {"scale": 2.0}, shapes, free=free)


def test_all_tries_every_axis_but_those_of_length_1() -> None:
    assert asked("all").tried == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)}
    assert not asked("all").required
    assert not asked(None, free=False).any


def test_axes_are_named_by_input_or_by_position() -> None:
    one = asked({"x": {0: Dim.AUTO}, "more": [None, (Dim.STATIC, Dim.DYNAMIC)]})
    two = asked(({0: Dim.AUTO}, [None, {-1: Dim.DYNAMIC}], None))
    for found in (one, two):
        assert found.tried == {(0, 0), (2, 1)}
        assert found.required == {(2, 1)}


def test_axes_with_one_name_share_a_size_and_its_bounds() -> None:
    n = Dim("n", min=2, max=9)
    found = asked({"x": {1: n}, "more": [{0: n}, {1: Dim.AUTO}]})
    sizes = free_sizes(found, ["x", "y", "z"], [X, Y, Z])
    assert [(s.name, s.axes, s.least, s.most, s.required) for s in sizes] == [
        ("x.shape[1]", [(0, 1), (1, 0)], 2, 9, True),
        ("z.shape[1]", [(2, 1)], 1, None, False),
    ]


def test_the_batch_is_axis_0_of_what_is_as_long_there_as_the_first_input() -> None:
    model, args, kwargs = nn.Identity(), (X, [torch.ones(2), Z]), {"scale": 2.0}
    leaves = [X, torch.ones(2), Z]
    batch = {(i, 0) for i, x in enumerate(leaves) if len(x) == len(X)}
    assert asked_for(model, args, kwargs, "batch", free=True).tried == batch
    assert asked_for(model, args, kwargs, None, free=False).tried == set()
    every = asked_for(model, args, kwargs, None, free=True).tried
    assert every == asked_for(model, args, kwargs, "all", free=True).tried
    assert every > batch
    assert len(every) == sum(n > 1 for x in leaves for n in x.shape)


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        ({"z": {0: Dim.AUTO}}, "no input 'z'"),
        ((None,), "tuple of 1"),
        ([None], "list of 1"),
        ("x", "'x' names no axes"),
        ({"x": {2: Dim.AUTO}}, "no axis 2"),
        ({"x": (Dim.AUTO,)}, "2 axes"),
        ({"x": {0: "batch"}}, "to be 'batch'"),
        ({"x": {0: 3}}, "2 long"),
        ({"scale": {0: Dim.AUTO}}, "input scale is a float"),
        ({"more": [None]}, "nested in another way"),
    ],
)
def test_what_does_not_fit_is_an_error(shapes: Any, what: str) -> None:
    with pytest.raises(CaptureError, match=what) as caught:
        asked(shapes)
    assert "Dim.AUTO" in caught.value.do
    assert '"batch"' in caught.value.do
