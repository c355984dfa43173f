"""How data enters: what goes into the network, and what its loss is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

import fxprune as fp
from fxprune.errors import OptionError, ScoreError

X, CLASSES = torch.randn(5, 4), torch.tensor([0, 2, 1, 1, 0])


class Named(nn.Module):
    """Takes keywords, and returns what libraries of language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        return {"logits": self.lin(x) * scale, "hidden": x}


def test_pairs_with_classes_have_a_cross_entropy() -> None:
    model = nn.Linear(4, 3)
    found = list(fp.Calibration(DataLoader(TensorDataset(X, CLASSES), 2)).losses(model))
    expected = [cross_entropy(model(X[i : i + 2]), CLASSES[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))


def test_pairs_with_numbers_have_a_squared_error() -> None:
    model, y = nn.Linear(4, 3), torch.randn(5, 3)
    torch.testing.assert_close(next(fp.Calibration([(X, y)]).losses(model)), mse_loss(model(X), y))


def test_a_dict_goes_in_by_keyword_and_its_labels_do_not() -> None:
    model, batch = Named(), {"x": X, "labels": CLASSES, "scale": 2.0}
    data = fp.Calibration([batch])
    assert data.has_loss
    (args, kwargs) = next(data.calls())
    assert args == ()
    assert list(kwargs) == ["x", "scale"]
    expected = cross_entropy(model(X, 2.0)["logits"], CLASSES)
    torch.testing.assert_close(next(data.losses(model)), expected)


def test_classes_on_the_last_axis_as_language_models_have_them() -> None:
    model, words = nn.Linear(4, 7), torch.randint(7, (2, 5))
    x = torch.randn(2, 5, 4)
    expected = cross_entropy(model(x).flatten(0, 1), words.flatten())
    torch.testing.assert_close(next(fp.Calibration([(x, words)]).losses(model)), expected)


def test_forward_and_loss_of_ones_own() -> None:
    model = nn.Linear(4, 3)
    data = fp.Calibration(
        [{"image": X, "wanted": CLASSES}],
        forward=lambda module, batch: module(batch["image"] * 2),
        loss=lambda outputs, batch: cross_entropy(outputs, batch["wanted"]),
    )
    with torch.no_grad():
        assert data.mean_loss(model) == float(cross_entropy(model(2 * X), CLASSES))
    torch.testing.assert_close(next(data.calls()), ((2 * X,), {}))


def test_batches_go_to_the_device_of_the_network_and_no_more_than_asked() -> None:
    data = fp.Calibration([X] * 5, limit=2)
    assert [args[0].device.type for args, _ in data.calls(torch.device("meta"))] == ["meta"] * 2
    assert not data.has_loss


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no batches": ({"batches": []}, "no batches"),
    "an iterator": ({"batches": iter([X])}, "is an iterator"),
    "a number": ({"batches": 3}, "which has no batches"),
    "a loss that is a number": ({"batches": [X], "loss": 1.0}, "loss is a float"),
    "no batch wanted": ({"batches": [X], "limit": 0}, "limit is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read(case: str) -> None:
    options, says = REFUSED[case]
    with pytest.raises(OptionError, match=says):
        fp.Calibration(**options)


LOSSES: dict[str, tuple[Any, Any, str]] = {
    "no labels": (X, None, "nothing says what the loss"),
    "labels of another shape": ((X, torch.randn(5, 2)), None, "nothing says what the loss"),
    "a vector": (X, lambda outputs, batch: outputs[0], r"the loss is \[3\]"),
    "a float": (X, lambda outputs, batch: 1.0, "the loss is float"),
    "nan": (X, lambda outputs, batch: outputs.sum() * torch.nan, "not finite"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_losses_that_are_none(case: str) -> None:
    batch, loss, says = LOSSES[case]
    with pytest.raises(ScoreError, match=says):
        next(fp.Calibration([batch], loss=loss).losses(nn.Linear(4, 3)))


def test_a_forward_that_does_not_call_the_module() -> None:
    with pytest.raises(OptionError, match="does not call the module"):
        next(fp.Calibration([X], forward=lambda module, batch: batch).calls())
