"""New statistics of batch norms: those that the model itself would have, through torch's own tool too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import fxprune as fp
from fxprune.errors import OptionError

BATCHES = [torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]


class Shared(nn.Module):
    """A batch norm that is called twice, and one that has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.last = nn.BatchNorm2d(3, affine=False, momentum=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.conv(self.norm(x)).relu()) + x)


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items() if "running" in k or "num_" in k}


def by_update_bn(network: Any, batches: list[torch.Tensor]) -> Any:
    update_bn(batches, network.module if isinstance(network, fp.Program) else network)
    return network


@pytest.mark.parametrize("make", [plain, Shared])
@pytest.mark.parametrize("how", [by_update_bn, fp.recalibrate])
@pytest.mark.parametrize("training", [False, True])
def test_a_program_gets_the_statistics_of_the_model(
    make: Callable[[], nn.Module], how: Callable[..., Any], training: bool
) -> None:
    torch.manual_seed(0)
    batches = [b.double() for b in BATCHES]
    model = make().double().train(training)
    own = copy.deepcopy(model)  # a program shares the tensors of its model
    program = fp.capture(own, batches[0])
    found = how(program, batches)
    expected = statistics(by_update_bn(model, batches))
    torch.testing.assert_close(statistics(found.module), expected, rtol=1e-12, atol=1e-12)
    assert found.training == training
    for network in (found.train(), model.train()):  # from here on with the momentum that was there
        network(batches[1])
    found.train(training)
    assert "share_of_last" not in found.module.code
    torch.testing.assert_close(statistics(found.module), statistics(model), rtol=1e-12, atol=1e-12)


def test_what_is_recalibrated_stays_as_it_is() -> None:
    model = plain().eval()
    program = fp.capture(model, BATCHES[0])
    networks: list[tuple[Any, nn.Module]] = [(model, model), (program, program.module)]
    for network, module in networks:
        before = copy.deepcopy(module.state_dict())
        again: Any = fp.recalibrate(network, BATCHES)
        torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
        assert not torch.equal(again(BATCHES[0]), network(BATCHES[0]))
        assert not again.training
    with torch.no_grad():
        again.module.get_parameter("0.weight").zero_()
    assert program.module.get_parameter("0.weight").any()


def test_after_pruning_a_recalibrated_program_is_pruned_and_saved(tmp_path: Any) -> None:
    small = fp.recalibrate(fp.prune(plain().eval(), BATCHES[0], keep=0.6).program, BATCHES)
    fp.save(small, tmp_path / "s")
    assert torch.equal(fp.load(tmp_path / "s")(BATCHES[0]), small(BATCHES[0]))
    assert fp.prune(small, keep=0.6).report.checks[0].ok
    assert len(by_update_bn(small.copy(), BATCHES).graph.nodes) == len(small.graph.nodes)
    assert torch.allclose(
        small.module.get_buffer("1.running_mean"),
        by_update_bn(small.copy(), BATCHES).module.get_buffer("1.running_mean"),
    )


def test_a_network_without_batch_norms_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)).eval()
    with pytest.warns(UserWarning, match="no batch norm"):
        fp.recalibrate(model, BATCHES)
    program = fp.recalibrate(fp.capture(model, BATCHES[0]), BATCHES)
    assert program.remarks[-1].code == "recalibrate.nothing"


@pytest.mark.parametrize("data", [[], iter(BATCHES), 3])
def test_data_that_cannot_be_read(data: Any) -> None:
    with pytest.raises(OptionError):
        fp.recalibrate(plain(), data)
    with pytest.raises(OptionError, match="a dict has no statistics"):
        fp.recalibrate({}, BATCHES)  # type: ignore[call-overload]
