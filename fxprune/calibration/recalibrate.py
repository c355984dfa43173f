"""New statistics for batch norms after pruning."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, overload
from warnings import warn

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from fxprune.calibration.calibration import Calibration, device_of
from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.process.random_state import random_state_kept
from fxprune.process.state import plain_modes
from fxprune.remark import Remark

_NOTHING = "no batch norm in it keeps running statistics"


class _OnBatch(nn.Module):
    """A network that is called with a batch."""

    def __init__(self, network: nn.Module, data: Calibration) -> None:
        super().__init__()
        self.network, self._data, self.training = network, data, network.training

    def forward(self, batch: Any) -> Any:
        return self._data.outputs(self.network, batch)


@overload
def recalibrate(network: Program, data: Calibration | Iterable[Any]) -> Program: ...
@overload
def recalibrate(network: nn.Module, data: Calibration | Iterable[Any]) -> nn.Module: ...
@plain_modes()
@random_state_kept()
def recalibrate(
    network: nn.Module | Program, data: Calibration | Iterable[Any]
) -> nn.Module | Program:
    """A copy of a network whose batch norms have the mean and variance of these batches as running statistics.

    Removed channels change what the remaining layers see, and statistics gathered before do not fit any more. As
    `torch.optim.swa_utils.update_bn`, this runs the network in train mode, with dropout on, and each batch counts
    the same. Other buffers, weights and the mode of the network stay as they are.

    Args:
        network: a program or a model; it stays as it is.
        data: representative inputs in batches as large as in training; labels are not needed.

    Raises:
        OptionError: the batches cannot be read, or the network is neither model nor program.
    """
    calibration = Calibration.of(data)
    if isinstance(network, Program):
        found = network.copy()
        if update_statistics(found.module, calibration):
            return found
        remark = Remark("missed", "recalibrate.nothing", network.name, _NOTHING)
        return replace(found, remarks=(*found.remarks, remark))
    if not isinstance(network, nn.Module):
        raise OptionError(
            f"a {type(network).__name__} has no statistics",
            do="give a model, or a program such as outcome.program",
        )
    model = copy.deepcopy(network)
    if not update_statistics(model, calibration):
        warn(f"recalibrate changed nothing: {_NOTHING}", UserWarning, stacklevel=2)
    return model


def update_statistics(network: nn.Module, data: Calibration, batches: int | None = None) -> bool:
    """Gathers the statistics of batch norms in place.

    Args:
        network: whose they are.
        data: what it is run on.
        batches: no more than so many; None: all.

    Returns:
        Whether there are any.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return False
    read = islice(data.on(device_of(network)), batches)
    with torch.no_grad():
        update_bn(([batch] for batch in read), _OnBatch(network, data))
    return True
