"""Weights that are computed: standardised, normed, orthogonal, nested, with hooks around them.

Each network is captured, pruned and held against the silenced original in both modes; computed weights are folded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fxprune as fp
from fxprune.errors import VerifyError

Change = Callable[[Any], nn.Module]
BOTH = pytest.mark.parametrize("training", [True, False])


class Standardised(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 for each output."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) * torch.rsqrt(variance * self.weight[0].numel() + 1e-4)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ByBatchNorm(nn.Conv2d):
    """The same by a batch norm in train mode, as timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class Halve(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class LowRank(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(rows, 3)), nn.Parameter(torch.randn(3, columns))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.a @ self.b


def halved(layer: Any) -> Any:
    return parametrize.register_parametrization(layer, "weight", Halve())


def low_rank(layer: Any) -> Any:
    return parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape))


def hooked(layer: Any) -> Any:
    layer.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    layer.register_forward_hook(lambda _m, _args, out: out.clamp(max=3.0))
    layer.register_full_backward_hook(lambda *_: None)
    return parametrizations.spectral_norm(layer)


def old(name: str, **options: Any) -> Change:
    def change(layer: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(nn.utils, name)(layer, **options)

    return change


def linear(change: Change) -> tuple[nn.Module, Tensor]:
    layers = change(nn.Linear(6, 16)), change(nn.Linear(16, 12)), nn.Linear(12, 3)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]), torch.randn(5, 6)


def images(one: nn.Module, two: nn.Module) -> tuple[nn.Module, Tensor]:
    norms = nn.BatchNorm2d(16), nn.BatchNorm2d(12)
    body = nn.Sequential(one, norms[0], nn.ReLU(), two, norms[1], nn.ReLU())
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)
    return nn.Sequential(body, *pooled), torch.randn(3, 3, 6, 6)


def convolutions(kind: Any, change: Change = lambda layer: layer) -> tuple[nn.Module, Tensor]:
    return images(change(kind(3, 16, 3, padding=1)), change(kind(16, 12, 3, padding=1)))


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "standardised": lambda: convolutions(Standardised),
    "by batch norm": lambda: convolutions(ByBatchNorm),
    "orthogonal": lambda: linear(parametrizations.orthogonal),
    "weight norm": lambda: linear(parametrizations.weight_norm),
    "weight norm of columns": lambda: linear(partial(parametrizations.weight_norm, dim=1)),
    "old weight norm": lambda: linear(old("weight_norm")),
    "weight norm, transposed": lambda: convolutions(
        nn.ConvTranspose2d, parametrizations.weight_norm
    ),
    "spectral norm of columns": lambda: linear(partial(parametrizations.spectral_norm, dim=1)),
    "spectral norm, transposed": lambda: convolutions(
        nn.ConvTranspose2d, parametrizations.spectral_norm
    ),
    "old spectral norm": lambda: convolutions(nn.Conv2d, old("spectral_norm")),
    "halved spectral norm": lambda: linear(lambda x: parametrizations.spectral_norm(halved(x))),
    "spectral norm of weight norm": lambda: linear(
        lambda x: parametrizations.spectral_norm(parametrizations.weight_norm(x))
    ),
    "low rank": lambda: linear(low_rank),
    "hooks": lambda: linear(hooked),
    "halved": lambda: linear(halved),
}


@pytest.fixture(params=[*CASES])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    return CASES[request.param]()


@BOTH
def test_it_is_pruned_and_folded(case: tuple[nn.Module, Tensor], training: bool) -> None:
    model, x = case
    outcome = fp.prune(model.train(training), x, keep=0.5)  # raises where anything differs
    before, after = (fp.summary(p).to_json() for p in (outcome.original, outcome.program))
    assert after["total"]["macs"] < 0.55 * before["total"]["macs"]
    small = outcome.program
    folded = fp.run(small, None, "fold-constants{parameters=true} | fold-batchnorm").program
    small, folded = (p.train(training) for p in (small, folded))
    state = {n: t.clone() for n, t in small.tensors().items()}
    wanted = small(x)
    for name, tensor in small.tensors().items():
        tensor.data.copy_(state[name])  # what power iteration and batch norm wrote
    torch.testing.assert_close(folded(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["weight norm", "old weight norm", "low rank", "halved"])
def test_a_pruned_network_is_the_one_of_smaller_parameters(name: str) -> None:
    """Held against the same layers of plain torch, with the cut tensors in place of their own."""
    model, x = CASES[name]()
    small = fp.prune(model.eval(), x, keep=0.5).program
    for key, tensor in small.tensors().items():
        path, _, leaf = key.rpartition(".")
        model.get_submodule(path).get_parameter(leaf).data = tensor.detach()
    torch.testing.assert_close(small(x), model(x))


def test_a_backward_hook_that_changes_gradients_is_refused_in_train_mode() -> None:
    model, x = linear(lambda layer: layer)
    model[2].register_full_backward_pre_hook(lambda _, grads: (3 * grads[0],))  # type: ignore
    assert "capture.backward-dropped" in {r.code for r in fp.prune(model.eval(), x).remarks}
    with pytest.raises(VerifyError, match=r"a full backward hook on a module in Sequential") as e:
        fp.prune(model.train(), x)
    assert "contextlib" not in str(e.value)
