"""Tests of fxprune.graph.inputs: a captured graph refuses inputs for which it does not hold."""

from __future__ import annotations

import copy
import enum
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters

import fxprune as fp
from fxprune.errors import InputError


class Kind(enum.Enum):
    SUM = 1
    MEAN = 2


class Net(nn.Module):
    """Reads numbers, options and nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, option: Any = None, *, more: Any = None) -> Tensor:
        y = self.b(self.a(x).relu())
        if isinstance(option, int | float):
            y = y * option
        return cast(Tensor, y + more["a"][0] if isinstance(more, dict) else y)


X = torch.randn(2, 4)
OPTIONS = [(10, 500), (1, True), (True, False), (0.5, 0.25), (2, 2.0), ("a", "b"), (None, 0)]
OPTIONS += [
    (None, X),
    (3, torch.tensor(3)),
    (Kind.SUM, Kind.MEAN),
    (None, [1]),
    (math.nan, 1.0),
    (1.0, math.nan),
]


@pytest.mark.parametrize(("captured", "given"), OPTIONS)
def test_another_constant_is_refused(captured: Any, given: Any) -> None:
    program = fp.capture(Net(), (X, captured))
    again = program(X, option=copy.deepcopy(captured))
    torch.testing.assert_close(program(X, captured), again, equal_nan=True)
    with pytest.raises(InputError, match="input option is") as caught:
        program(X, given)
    assert f"but {captured!r} was captured" in caught.value.what


WRONG: dict[str, tuple[Tensor, str]] = {
    "size": (torch.randn(2, 5), "axis 1 of input x is 5 long, but 4 was captured"),
    "rank": (torch.randn(4), "input x has 1 axes, but 2 were captured"),
    "integers": (torch.ones(2, 4).long(), r"input x is integer .* but floating-point"),
    "booleans": (torch.ones(2, 4).bool(), r"input x is boolean"),
    "complex numbers": (torch.ones(2, 4) + 0j, r"input x is complex"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_tensor_of_another_kind_is_refused(name: str) -> None:
    x, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        fp.capture(Net(), X)(x)


@pytest.mark.parametrize("x", [3, None, [X], "x"])
def test_what_is_no_tensor_is_refused(x: Any) -> None:
    with pytest.raises(InputError, match=r"input x is .*, but a tensor was captured"):
        fp.capture(Net(), X)(x)


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
def test_any_batch_fits_a_free_one(batch: int) -> None:
    model, x = Net().eval(), torch.randn(batch, 4)
    torch.testing.assert_close(fp.capture(model, X)(x), model(x))


def test_a_batch_that_is_not_free_is_fixed() -> None:
    with pytest.raises(InputError, match="axis 0 of input x is 3 long, but 2 was captured"):
        fp.capture(Net(), X, dynamic_batch=False)(torch.randn(3, 4))


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x[:1] + y[:1] + (x * y).sum()


def test_two_inputs_must_have_one_batch() -> None:
    program = fp.capture(Sum(), (X, torch.randn(2, 4)))
    program(torch.randn(3, 4), torch.randn(3, 4))
    with pytest.raises(InputError, match="axis 0 of input y is 1 long, axis 0 of input x 3"):
        program(torch.randn(3, 4), torch.randn(1, 4))


MORE = {"a": [X, X + 1], "n": 3}
NESTED: dict[str, tuple[Any, str]] = {
    "longer list": ({"a": [X, X, X], "n": 3}, "expected 2, but got 3"),
    "shorter list": ({"a": [X], "n": 3}, "expected 2, but got 1"),
    "missing key": ({"a": [X, X]}, "expected 2, but got 1"),
    "other key": ({"a": [X, X], "m": 3}, "missing key"),
    "a tuple": ({"a": (X, X), "n": 3}, "expected <class 'list'>"),
    "none": (None, "expected <class 'dict'>"),
}


@pytest.mark.parametrize("name", NESTED)
def test_other_containers_are_refused(name: str) -> None:
    more, message = NESTED[name]
    with pytest.raises(InputError, match=message) as caught:
        fp.capture(Net(), (X,), {"more": MORE})(X, more=more)
    assert caught.value.where == "more"


def test_what_is_inside_containers_is_compared() -> None:
    model = Net().eval()
    program = fp.capture(model, (X,), {"more": MORE})
    turned = {"n": 3, "a": MORE["a"]}
    torch.testing.assert_close(program(more=turned, x=X), model(X, more=turned))
    with pytest.raises(InputError, match="input more_n is 4, but 3 was captured"):
        program(X, more={**MORE, "n": 4})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X,), {}, "missing a required argument: 'option'"),
        ((X, 3, 4), {}, "too many positional arguments"),
        ((X, 3), {"more": None}, "unexpected keyword argument 'more'"),
    ],
)
def test_missing_and_further_inputs_are_refused(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fp.capture(Net(), (X, 3))(*args, **kwargs)


def saved(program: fp.Program, folder: Path) -> Any:
    fp.save(program, folder / "net")
    return fp.load(folder / "net")


WAYS: dict[str, Callable[[fp.Program, Path], Any]] = {
    "pickle": lambda program, _: pickle.loads(pickle.dumps(program.module)),
    "twice": lambda program, _: pickle.loads(pickle.dumps(copy.deepcopy(program.module))),
    "deepcopy": lambda program, _: copy.deepcopy(program.module),
    "save": saved,
    "passes": lambda program, _: fp.run(program, None, "drop-identity | fold-constants").program,
    "prune": lambda program, _: fp.prune(program, keep=0.5).program,
    "train": lambda program, _: copy.copy(program).train().eval(),
    "GraphModule": lambda program, _: fx.GraphModule(program.module, program.graph),
    "compile": lambda program, _: torch.compile(copy.deepcopy(program.module), backend="eager"),
    "parallel": lambda program, _: nn.DataParallel(program.module),
}


@pytest.mark.parametrize("way", WAYS)
def test_copies_refuse_the_same(way: str, tmp_path: Path) -> None:
    program = fp.capture(Net().eval(), (X, 3))
    twin = WAYS[way](program, tmp_path)
    assert twin(torch.randn(5, 4), 3).shape == (5, 4)
    for inputs in ((X, 4), (X, None), (torch.randn(2, 5), 3), (X.long(), 3)):
        with pytest.raises(InputError):
            twin(*inputs)


def test_compiled_it_compiles_no_more_than_unchecked() -> None:
    module = fp.capture(Net().eval(), (X, 3), {"more": MORE}).module
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    for n in (2, 3, 5, 8):
        compiled(torch.randn(n, 4), 3, more={"a": [torch.randn(n, 4)] * 2, "n": 3})
    assert counters["stats"]["unique_graphs"] == 1
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(torch.randn(2, 5), 3, more=MORE)


def test_other_tools_trace_it() -> None:
    model = Net().eval()
    program = fp.capture(model, (X, 3), {"more": MORE})
    traced = fx.symbolic_trace(program.module)
    torch.testing.assert_close(traced(X, 3, MORE), model(X, 3, more=MORE))
    assert not [n for n in traced.graph.nodes if "check" in n.name]
    exported = torch.export.export(program.module, (X, 3), {"more": MORE})
    torch.testing.assert_close(exported.module()(X, 3, more=MORE), model(X, 3, more=MORE))
