"""Tests of fxprune.capture.inputs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fxprune.capture.inputs import default_inputs, parse_input, parse_inputs
from fxprune.capture.named import load_model
from fxprune.errors import OptionError


def test_shapes_and_dtypes() -> None:
    assert parse_input("2x3x4").shape == (2, 3, 4)
    assert parse_input("2x3:int64").dtype == torch.int64
    assert parse_input("2:bfloat16").dtype == torch.bfloat16


def test_inputs_by_keyword() -> None:
    args, kwargs = parse_inputs(["2x3", "mask=2x4:bool", "5"])
    assert [tuple(x.shape) for x in args] == [(2, 3), (5,)]
    assert {name: (tuple(x.shape), x.dtype) for name, x in kwargs.items()} == {
        "mask": ((2, 4), torch.bool)
    }


def test_torchvision_models_run_on_their_default_inputs() -> None:
    pytest.importorskip("torchvision")
    model = load_model("torchvision:resnet18")
    assert not model.training
    assert default_inputs("torchvision:resnet18", model)[0].shape == (2, 3, 224, 224)
    assert default_inputs("torchvision:inception_v3", model)[0].shape[-1] == 299
    assert default_inputs("torchvision:r3d_18", model)[0].shape == (2, 3, 16, 112, 112)


def test_timm_models_say_their_size() -> None:
    pytest.importorskip("timm")
    model = load_model("timm:resnet10t")
    assert default_inputs("timm:resnet10t", model)[0].ndim == 4


def test_a_callable_makes_a_model() -> None:
    assert isinstance(load_model("torch.nn:Identity"), torch.nn.Identity)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: parse_input("2y3"), "not a shape"),
        (lambda: parse_input("0x3"), "not a shape"),
        (lambda: parse_input("2x3:bfloat61"), "bfloat16"),
        (lambda: parse_inputs(["a=2", "a=3"]), "given twice"),
        (lambda: parse_inputs(["2x3=2"]), "no name"),
        (lambda: parse_inputs(["a=2y3"]), "not a shape"),
        (lambda: load_model("resnet50"), "does not name a model"),
        (lambda: load_model("torchvision:resnet51"), "resnet50"),
        (lambda: load_model("no_such_package:model"), "cannot import"),
        (lambda: load_model("torch.nn:Identiti"), "Identity"),
        (lambda: load_model("builtins:dict"), "returns a dict"),
        (lambda: load_model(str(Path.cwd())), "saved program"),
        (lambda: default_inputs("torch.nn:Identity", torch.nn.Identity()), "no example input"),
    ],
)
def test_errors(act: Callable[[], object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        act()
